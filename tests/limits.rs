//! Limits on containers beside their share of CPUs: processes, shared memory, disks, network, memory given back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::namespace::Namespace;
use serde_json::Value;

fn main() -> ExitCode {
    let network: &[Need] = &[Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("nft")];
    run_tests(vec![
        test("processes_shared_memory_disks_and_network_are_limited", network, limited),
        test("memory_that_a_guest_frees_is_the_hosts_again_and_update_takes_more", &[Need::Kvm], reclaimed),
    ])
}

/// Bytes that go to the host's listener.
const SENT: usize = 128 << 10;

/// One container with all limits, in a network namespace of the test.
fn limited() -> anyhow::Result<()> {
    let (namespace, installation) = (Namespace::new()?, Installation::new()?);
    let image = busybox_reference()?;
    let lighter = |args: &[&str]| namespace.stdout(&installation, args);
    let limits =
        ["--pids-limit", "13", "--shm-size", "8m", "--device-write-bps", "100kb", "--network-rate", "16kb"];
    let run = ["run", "-d", "--name", "barge", "--network", "bridge"];
    lighter(&[&run[..], &limits, &[&image, "sh", "-c", "while true; do sleep 1000; done"]].concat())?;

    ensure!(lighter(&["exec", "barge", "sh", "-c", "df -k /dev/shm | awk 'END { print $2 }'"])? == "8192\n");
    // The main process and its child, this shell, and ten more.
    let bomb =
        "n=0; while [ $n -lt 10 ]; do sleep 100 & n=$((n+1)); done; echo all; sleep 100 & echo too many";
    let output = finish(
        namespace.lighter(&installation, &["exec", "barge", "sh", "-c", bomb]).spawn()?,
        GUEST_DEADLINE,
    )?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(out == "all\n" && error.contains("can't fork"), "{out}{error}");
    lighter(&["exec", "barge", "killall", "sleep"])?;

    let write = ["exec", "barge", "dd", "if=/dev/zero", "of=/file", "bs=64k", "count=8", "conv=fsync"];
    let start = Instant::now();
    lighter(&write)?;
    let slow = start.elapsed();
    ensure!(slow >= Duration::from_secs(4), "512 KiB at 100 KiB a second took {slow:?}");
    lighter(&["update", "--device-write-bps", "0", "barge"])?;
    let start = Instant::now();
    lighter(&write)?;
    ensure!(start.elapsed() < slow * 3 / 4, "without a limit {:?}, with one {slow:?}", start.elapsed());

    let send = || -> anyhow::Result<Duration> {
        let listener = namespace.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?))?;
        let listener = listener.join().ok().context("no listener")??;
        let world = std::thread::spawn(move || -> anyhow::Result<(usize, Duration)> {
            let (mut stream, _) = listener.accept()?;
            let start = Instant::now();
            let count = stream.read_to_end(&mut Vec::new())?;
            Ok((count, start.elapsed()))
        });
        let script = format!(
            "dd if=/dev/zero bs={SENT} count=1 | nc $(route -n | awk '$1 == \"0.0.0.0\" {{ print $2 }}') 7000"
        );
        lighter(&["exec", "barge", "sh", "-c", &script])?;
        let (count, took) = world.join().ok().context("the world panicked")??;
        ensure!(count == SENT, "{count} bytes");
        Ok(took)
    };
    // Eight seconds' worth, a part of which may pass at once.
    let slow = send()?;
    ensure!(slow >= Duration::from_secs(6), "{SENT} bytes at 16 KiB a second took {slow:?}");
    lighter(&["update", "--network-rate", "0", "barge"])?;
    let fast = send()?;
    ensure!(fast < slow * 3 / 4, "without a limit {fast:?}, with one {slow:?}");
    lighter(&["rm", "-f", "barge"])?;
    Ok(())
}

/// Memory that the host gives a guest, in MiB.
fn given(installation: &Installation) -> anyhow::Result<u64> {
    let text = installation.stdout(["stats", "--no-stream", "--format", "json", "eater"])?;
    let stats: Value = serde_json::from_str(&text)?;
    let bytes = stats["containers"][0]["stats"]["host"]["guest_pss"].as_u64();
    Ok(bytes.with_context(|| format!("no guest_pss in {text}"))? >> 20)
}

fn reclaimed() -> anyhow::Result<()> {
    // Each page takes four milliseconds where ring 0 is emulated.
    const MIB: u64 = 32;
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let args =
        ["run", "-i", "--name", "eater", "--network", "none", &image, "/guest/eater", &MIB.to_string()];
    let mut child = installation.command(args).stdin(Stdio::piped()).spawn()?;
    let mut commands = child.stdin.take().context("no stdin")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut next = |expected: &str| -> anyhow::Result<()> {
        commands.write_all(b"\n")?;
        let line = lines.next().context("the eater ended")??;
        ensure!(line == expected, "{line:?}");
        Ok(())
    };
    next("full")?;
    let full = given(&installation)?;
    ensure!(full > MIB, "{full} MiB while the guest uses {MIB}");
    next("free")?;
    let start = Instant::now();
    // What is not in whole free blocks of 2 MiB stays, which of so little is much.
    let goal = full - MIB / 2;
    let mut now = given(&installation)?;
    while now > goal && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(100));
        now = given(&installation)?;
    }
    println!("{full} MiB, and {now} MiB {:.1} s after {MIB} MiB were freed", start.elapsed().as_secs_f64());
    ensure!(now <= goal, "{full} MiB, and {now} MiB after {MIB} MiB were freed");

    let grow = finish(installation.command(["update", "-m", "4g", "eater"]).spawn()?, GUEST_DEADLINE)?;
    ensure!(String::from_utf8_lossy(&grow.stderr).contains("stop the container"), "{grow:?}");
    // As much as the guest gives back within the time of a test where ring 0 is emulated.
    installation.stdout(["update", "-m", "465m", "eater"])?;
    let spec: Value = serde_json::from_str(&installation.stdout(["inspect", "eater"])?)?;
    ensure!(
        spec[0]["HostConfig"]["Resources"]["memory"].as_u64().is_some_and(|bytes| bytes < 512 << 20),
        "{spec}"
    );
    drop(commands);
    ensure!(finish(child, GUEST_DEADLINE)?.status.success());
    // Started again, its machine has the new size.
    installation.stdout(["start", "eater"])?;
    ensure!(installation.stdout(["inspect", "-f", "{{.HostConfig.MemoryMiB}}", "eater"])?.trim() == "465");
    installation.stdout(["rm", "-f", "eater"])?;
    Ok(())
}
