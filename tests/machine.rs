//! The virtual machine under the container: vCPUs, vector registers, disks that survive a power cut.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, run};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use rustix::process::{Pid, Signal, kill_process};

fn main() -> ExitCode {
    run_tests(vec![
        test("one_vcpu_runs", &[Need::Kvm], || vcpus(1)),
        test("two_vcpus_run", &[Need::Kvm], || vcpus(2)),
        test("four_vcpus_run", &[Need::Kvm], || vcpus(4)),
        test("avx_registers_survive_task_switches", &[Need::Kvm], avx),
        test("without_xsave_the_avx_test_notices", &[Need::Kvm], avx_control),
        test("what_was_synced_survives_a_power_cut", &[Need::Kvm, Need::Program("debugfs")], power_cut),
        test("more_than_three_gib_of_memory_is_usable", &[Need::Kvm], big_memory),
        test("a_container_that_powers_off_ends_as_by_sigint", &[Need::Kvm], power_off),
    ])
}

fn guest(options: &[&str], script: &str) -> anyhow::Result<String> {
    let image = busybox_reference()?;
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(options);
    args.extend([&image, "sh", "-c", script]);
    Installation::shared()?.stdout(args)
}

/// Every vCPU is there, takes a task of its own, and gets interrupts of its own.
fn vcpus(count: usize) -> anyhow::Result<()> {
    let script = "grep -c ^processor /proc/cpuinfo
        n=0; while [ $n -lt $(grep -c ^processor /proc/cpuinfo) ]; do taskset -c $n sh -c 'sleep 0.1; echo ran' & n=$((n+1)); done; wait";
    let stdout = guest(&["--cpus", &count.to_string()], script)?;
    let mut lines = stdout.lines();
    ensure!(lines.next() == Some(count.to_string().as_str()), "{stdout}");
    ensure!(lines.filter(|line| *line == "ran").count() == count, "{stdout}");
    Ok(())
}

/// Two processes with different lanes, on one vCPU and on two: every lane of each is checked.
fn avx() -> anyhow::Result<()> {
    for cpus in ["1", "2"] {
        let script = "/guest/avx_lanes 1 60 & /guest/avx_lanes 2 60 & wait";
        let stdout = guest(&["--cpus", cpus], script)?;
        ensure!(stdout == "ok 60\nok 60\n", "{cpus} vCPU: {stdout}");
    }
    Ok(())
}

/// The control of the test above: a guest that does not save these registers must not pass it. Where ring 0 is
/// emulated the kernel then loses the upper halves; on hardware it takes AVX away from programs as well.
fn avx_control() -> anyhow::Result<()> {
    let script = "/guest/avx_lanes 1 60 & /guest/avx_lanes 2 60 & wait";
    let stdout = guest(&["--cpus", "1", "--kernel-arg", "noxsave"], script)?;
    let noticed = stdout.lines().any(|line| line.contains("became"));
    ensure!(
        noticed || stdout == "no avx\nno avx\n",
        "lanes survived a kernel that does not save them: {stdout}"
    );
    Ok(())
}

fn big_memory() -> anyhow::Result<()> {
    let script =
        "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; grep -c 'System RAM' /proc/iomem";
    let stdout = guest(&["-m", "4g"], script)?;
    let total: u64 = stdout.lines().next().context("no output")?.parse()?;
    ensure!(total > 3_700_000 && total < 4_700_000, "MemTotal is {total} kB of 4 GiB");
    Ok(())
}

/// In a PID namespace the kernel ends the namespace's init by SIGINT instead of the machine (reboot(2)); the
/// agent then ends the machine in order.
fn power_off() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let args = [
        "run",
        "--rm",
        "--network",
        "none",
        "--privileged",
        &image,
        "sh",
        "-c",
        "echo bye; poweroff -f; sleep 1000",
    ];
    let output = Installation::shared()?.output(args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.stdout == b"bye\n", "{stderr}");
    ensure!(output.status.code() == Some(130), "{}: {stderr}", output.status);
    Ok(())
}

/// kill -9 of the VMM right after fsync: the file is whole on the container's disk.
fn power_cut() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let installation = Installation::new()?;
    let args = ["run", "--network", "none", &image, "/guest/durable", "/"];
    let mut child = installation.command(args).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "durable\n", "the guest said {line:?}");
    let vmm = only_child(child.id())?;
    kill_process(vmm, Signal::KILL)?;
    let output = finish(child, GUEST_DEADLINE)?;
    ensure!(
        output.status.code() == Some(125),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );

    let disk = largest_file(&installation.root().join("containers"))?;
    let copy = tempfile::NamedTempFile::new()?;
    run(Command::new("cp").arg("--sparse=always").arg(&disk).arg(copy.path()))?;
    let check = Command::new("e2fsck").args(["-fy"]).arg(copy.path()).output()?;
    ensure!(matches!(check.status.code(), Some(0 | 1)), "e2fsck: {}", String::from_utf8_lossy(&check.stdout));
    let kept = tempfile::NamedTempFile::new()?;
    let dump = format!("dump /upper/kept {}", kept.path().display());
    run(Command::new("debugfs").args(["-R", &dump]).arg(copy.path()))?;
    let expected: String = (0..20_000).map(|line| format!("line {line:08}\n")).collect();
    ensure!(std::fs::read_to_string(kept.path())? == expected, "the synced file is not whole");
    Ok(())
}

fn only_child(parent: u32) -> anyhow::Result<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let first = children.split_whitespace().next().context("lighter has no child")?;
    Pid::from_raw(first.parse()?).context("no process ID")
}

fn largest_file(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut found = Vec::new();
    for container in std::fs::read_dir(directory).with_context(|| format!("no {}", directory.display()))? {
        for file in std::fs::read_dir(container?.path())? {
            let file = file?;
            found.push((file.metadata()?.len(), file.path()));
        }
    }
    found.sort();
    Ok(found.pop().context("no file in any container's directory")?.1)
}
