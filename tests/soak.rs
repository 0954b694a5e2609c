//! Many containers, one after the other and at once: what was there before is there after, and nothing else.
//!
//! `LIGHTER_SOAK` says how many one after the other (10; the engine's goal is 200).

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, run};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::namespace::Namespace;

/// At once.
const CROWD: usize = 20;

fn main() -> ExitCode {
    let needs = &[Need::Kvm, Need::Root, Need::Program("nft"), Need::Program("ip")];
    run_tests(vec![test("runs_in_a_row_and_at_once_leave_nothing_behind", needs, leave_nothing)])
}

/// Everything of the host that a container may touch, but for what other tests do meanwhile.
fn inventory(namespace: &Namespace, installation: &Installation) -> anyhow::Result<String> {
    let root = installation.root().display().to_string();
    let of_ours = |text: String| -> String {
        text.lines().filter(|line| line.contains(&root)).map(|line| format!("{line}\n")).collect()
    };
    let mounts = of_ours(std::fs::read_to_string("/proc/self/mountinfo")?);
    let processes = of_ours(run(Command::new("ps").args(["-e", "-ww", "-o", "args"]))?);
    let files =
        run(Command::new("find").arg(installation.run_directory()).args(["-type", "f"])).unwrap_or_default();
    Ok(namespace.inventory()? + &mounts + &processes + &files)
}

fn leave_nothing() -> anyhow::Result<()> {
    let rounds = match std::env::var("LIGHTER_SOAK") {
        Ok(number) => number.parse().context("LIGHTER_SOAK is no number")?,
        Err(_) => 10,
    };
    let installation = Installation::new()?;
    let namespace = Namespace::new()?;
    let image = busybox_reference()?;
    let ids = tempfile::tempdir()?;
    let run = |number: usize| {
        let id = ids.path().join(number.to_string()).display().to_string();
        let args =
            ["run", "--rm", "--network", "bridge", "--cpus", "1", "--cidfile", &id, &image, "echo", "hello"];
        namespace.lighter(&installation, &args).spawn()
    };
    let check = |child| -> anyhow::Result<()> {
        let output = finish(child, GUEST_DEADLINE)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.stdout == b"hello\n", "{}: {stderr}", output.status);
        Ok(())
    };
    // The first one leaves what stays on purpose: templates, locks.
    check(run(0)?)?;
    let before = inventory(&namespace, &installation)?;
    for number in 1..=rounds {
        check(run(number)?)?;
    }
    let crowd: Vec<_> = (rounds + 1..=rounds + CROWD).map(run).collect::<Result<_, _>>()?;
    for child in crowd {
        check(child)?;
    }
    // A keeper lives a moment longer than its container.
    namespace.stdout(&installation, &["ps"])?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let after = inventory(&namespace, &installation)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(installation.leftovers()?.is_empty(), "left behind: {:?}", installation.leftovers()?);
    for id in std::fs::read_dir(ids.path())? {
        let id = std::fs::read_to_string(id?.path())?;
        let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &id]).output()?.stdout;
        ensure!(found.is_empty(), "a cgroup is left: {}", String::from_utf8_lossy(&found));
    }
    Ok(())
}
