//! kill -9 at any moment: the caller is told, and the next command removes what was left.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, oci_layout};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

fn main() -> ExitCode {
    run_tests(vec![
        test("a_killed_vmm_is_reported_and_swept", &[Need::Kvm], killed_vmm),
        test("a_killed_keeper_takes_its_vm_with_it", &[Need::Kvm], killed_keeper),
        test("a_container_outlives_its_killed_caller", &[Need::Kvm], killed_cli),
        test("a_container_that_is_kept_is_told_to_have_lost_its_keeper", &[Need::Kvm], lost_container),
        test(
            "a_run_killed_at_any_moment_leaves_nothing_that_rm_does_not_remove",
            &[Need::Kvm],
            killed_at_any_moment,
        ),
        test("a_pull_killed_at_any_moment_is_made_good_by_the_next", &[Need::Program("umoci")], killed_pull),
    ])
}

fn sleeper(installation: &Installation) -> anyhow::Result<Child> {
    let image = busybox_reference()?;
    let args = ["run", "--rm", "--network", "none", &image, "sh", "-c", "echo up; sleep 1000"];
    let mut child = installation.command(args).spawn()?;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
    stdout.read_line(&mut line)?;
    if line != "up\n" {
        let output = finish(child, GUEST_DEADLINE)?;
        anyhow::bail!("the guest said {line:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(child)
}

fn child_of(parent: u32) -> anyhow::Result<Option<Pid>> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(children.split_whitespace().next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw))
}

fn swept(installation: &Installation) -> anyhow::Result<()> {
    installation.stdout(["images"])?;
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn killed_vmm() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let child = sleeper(&installation)?;
    let keeper = child_of(child.id())?.context("no keeper")?;
    kill_process(child_of(raw(keeper))?.context("no VMM")?, Signal::KILL)?;
    let output = finish(child, GUEST_DEADLINE)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    ensure!(stderr.contains("signal 9") || stderr.contains("SIGKILL"), "{stderr}");
    swept(&installation)
}

fn killed_keeper() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let child = sleeper(&installation)?;
    let keeper = child_of(child.id())?.context("no keeper")?;
    let vmm = child_of(raw(keeper))?.context("no VMM")?;
    kill_process(keeper, Signal::KILL)?;
    let output = finish(child, GUEST_DEADLINE)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && stderr.contains("keeper"), "{}: {stderr}", output.status);
    gone(vmm, "the VMM outlives its keeper")?;
    swept(&installation)
}

fn killed_cli() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let mut child = sleeper(&installation)?;
    let keeper = child_of(child.id())?.context("no keeper")?;
    child.kill()?;
    child.wait()?;
    let id = installation.stdout(["ps", "-q"])?;
    let stdout = installation.stdout(["exec", id.trim(), "echo", "still", "here"])?;
    ensure!(stdout == "still here\n", "{stdout:?}");
    installation.stdout(["rm", "-f", id.trim()])?;
    gone(keeper, "the keeper outlives its container")?;
    swept(&installation)
}

fn lost_container() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    installation.stdout(["run", "-d", "--name", "lost", "--network", "none", &image, "sleep", "1000"])?;
    let pid = |field: &str| -> anyhow::Result<Pid> {
        let text = installation.stdout(["inspect", "-f", &format!("{{{{.State.{field}}}}}"), "lost"])?;
        Pid::from_raw(text.trim().parse()?).context("no process")
    };
    let (keeper, vmm) = (pid("KeeperPid")?, pid("Pid")?);
    kill_process(keeper, Signal::KILL)?;
    gone(vmm, "the VMM outlives its keeper")?;
    let state = installation.stdout([
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}",
        "lost",
    ])?;
    ensure!(state.starts_with("exited 137 ") && state.contains("keeper was killed"), "{state:?}");
    // Nothing of it is lost, and it can be started again.
    installation.stdout(["start", "lost"])?;
    ensure!(installation.stdout(["exec", "lost", "echo", "again"])? == "again\n");
    installation.stdout(["rm", "-f", "lost"])?;
    swept(&installation)
}

fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn gone(pid: Pid, complaint: &str) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while alive(pid) {
        ensure!(Instant::now() < end, "{complaint}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Alive and not a zombie that waits for whoever adopted it.
fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    test_kill_process(pid).is_ok() && stat.is_ok_and(|stat| !stat.contains(") Z"))
}

fn killed_at_any_moment() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let moments = [1, 3, 10, 10, 20, 20, 40, 40, 80, 80, 160, 160, 320, 320, 1000, 1000];
    for (round, milliseconds) in moments.into_iter().enumerate() {
        let args = ["run", "--rm", "--network", "none", &image, "true"];
        let mut child = installation.command(args).spawn()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        // In turn the caller and the keeper, where there is one yet.
        let keeper = child_of(child.id())?.filter(|_| round % 2 == 1);
        let vmm = keeper.map(|keeper| child_of(raw(keeper))).transpose().ok().flatten().flatten();
        match keeper {
            Some(keeper) => kill_process(keeper, Signal::KILL)?,
            None => child.kill()?,
        }
        child.wait()?;
        if let Some(vmm) = vmm {
            gone(vmm, &format!("killed after {milliseconds} ms, the VMM outlives its keeper"))?;
        }
        for id in installation.stdout(["ps", "-aq"])?.lines() {
            // It may be on its own way out meanwhile.
            finish(installation.command(["rm", "-f", id]).spawn()?, GUEST_DEADLINE)?;
        }
        // A keeper that removes its container itself is a moment behind the `rm` that found it doing so.
        let end = Instant::now() + Duration::from_secs(5);
        while swept(&installation).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        swept(&installation).with_context(|| format!("killed after {milliseconds} ms"))?;
    }
    // And the store is whole: the same image still runs.
    let stdout = installation.stdout(["run", "--rm", "--network", "none", &image, "echo", "whole"])?;
    ensure!(stdout == "whole\n", "{stdout:?}");
    Ok(())
}

fn killed_pull() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let reference = format!("oci:{}:latest", oci_layout(directory.path(), &[])?.display());
    let installation = Installation::new()?;
    for milliseconds in [1, 2, 4, 8, 16, 32, 64] {
        let mut child = installation.command(["pull", &reference]).spawn()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill()?;
        child.wait()?;
    }
    installation.stdout(["pull", &reference])?;
    installation.stdout(["system", "prune", "--force"])?;
    let mut partial = Vec::new();
    if let Ok(entries) = std::fs::read_dir(installation.root().join("blobs/partial")) {
        partial.extend(entries.filter_map(|entry| entry.ok()).map(|entry| entry.path()));
    }
    ensure!(partial.is_empty(), "left behind: {partial:?}");
    // Two at once give one image.
    let fresh = Installation::new()?;
    let mut first = fresh.command(["pull", &reference]).spawn()?;
    let mut second = fresh.command(["pull", &reference]).spawn()?;
    for child in [&mut first, &mut second] {
        let mut stderr = String::new();
        child.stderr.take().context("no stderr")?.read_to_string(&mut stderr)?;
        let status = child.wait()?;
        ensure!(status.success(), "{status}: {stderr}");
    }
    Ok(())
}
