//! A data directory on a disk that is full: containers hear of it as of any full disk, lighter stays whole, and what
//! waits for room goes on when there is some.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, run};
use lighter_tests::lighter::Installation;
use serde_json::Value;

fn main() -> ExitCode {
    let needs = &[Need::Root, Need::Program("runc")];
    run_tests(vec![test("a_full_disk_hurts_nobody_for_longer_than_it_is_full", needs, full)])
}

/// A small file system at a directory, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path, size: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "none"]).arg(directory))?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn full() -> anyhow::Result<()> {
    let lighter = Installation::without_templates()?;
    let _disk = SmallDisk::mount(&lighter.root(), "size=64m")?;
    let image = busybox_reference()?;
    let start = |name: &str, script: &str| {
        let first = ["run", "-d", "--name", name, "--isolation", "container", "--network", "none"];
        lighter.stdout(first.iter().chain(&[image.as_str(), "sh", "-c", script]))
    };
    start("talker", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")?;
    start("writer", "sleep 100000")?;
    start("mortal", "sleep 100000")?;
    until(|| Ok(lighter.stdout(["logs", "talker"])?.contains("line 9\n")))?;

    let fill = "dd if=/dev/zero of=/big bs=64k; sync; echo $?; sh -c 'dd if=/dev/zero of=/more bs=1' 2>&1 | tail -n 1";
    let filled = lighter.output(["exec", "writer", "sh", "-c", fill])?;
    let said = String::from_utf8_lossy(&filled.stderr);
    ensure!(said.contains("No space left on device"), "the container did not hear of it: {said}");

    // What is new is refused with the way out; what is there goes on.
    let refused = lighter.output(["run", "--isolation", "container", "--network", "none", &image, "true"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(125), "{}: {said}", refused.status);
    ensure!(said.contains("No space left") && said.contains("system prune"), "{said}");
    ensure!(lighter.stdout(["exec", "talker", "echo", "alive"])? == "alive\n");
    let ps = lighter.stdout(["ps"])?;
    ensure!(["talker", "writer", "mortal"].iter().all(|name| ps.contains(name)), "{ps}");
    // How a container ends is noted in any case.
    lighter.stdout(["kill", "mortal"])?;
    ensure!(lighter.stdout(["wait", "mortal"])? == "137\n");
    let state: Value = serde_json::from_str(&lighter.stdout(["inspect", "mortal"])?)?;
    ensure!(state[0]["State"]["Status"] == "exited" && state[0]["State"]["ExitCode"] == 137, "{state}");

    let before = lines(&lighter)?;
    lighter.stdout(["exec", "writer", "rm", "-f", "/big", "/more"])?;
    until(|| Ok(lines(&lighter)?.last() > before.last()))?;
    let after = lines(&lighter)?;
    ensure!(
        after.starts_with(&before) && after.first() == Some(&1),
        "the full disk took of the log: {after:?}"
    );
    let ran = ["run", "--rm", "--isolation", "container", "--network", "none", &image, "echo", "again"];
    ensure!(lighter.stdout(ran)? == "again\n");
    let events = lighter.stdout(["events", "--since", "1h", "--until", "0s", "--format", "json"])?;
    for line in events.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("a torn event: {line}"))?;
    }
    ensure!(
        events.lines().last().is_some_and(|line| line.contains("\"die\"") || line.contains("destroy")),
        "{events}"
    );
    lighter.stdout(["rm", "-f", "talker", "writer", "mortal"])?;
    ensure!(lighter.leftovers()?.is_empty(), "{:?}", lighter.leftovers()?);
    Ok(())
}

/// The numbers in the log of the talker.
fn lines(lighter: &Installation) -> anyhow::Result<Vec<u64>> {
    let log = lighter.stdout(["logs", "talker"])?;
    log.lines().map(|line| Ok(line.trim_start_matches("line ").parse()?)).collect()
}

fn until(condition: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition()? {
        ensure!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
