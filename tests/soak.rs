//! Many containers, one after the other and at once: what was there before is there after, and nothing else.
//!
//! `LIGHTER_SOAK` says how many one after the other (10; the goals are 200 runs and 2,000 clones).

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
    run_tests(vec![
        test("runs_in_a_row_and_at_once_leave_nothing_behind", needs, leave_nothing),
        test("a_container_can_be_cloned_again_and_again", &[Need::Kvm], clones),
    ])
}

/// How many, one after the other.
fn rounds() -> anyhow::Result<usize> {
    std::env::var("LIGHTER_SOAK").map_or(Ok(10), |number| number.parse().context("LIGHTER_SOAK is no number"))
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
    let rounds = rounds()?;
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

/// What a process holds: descriptors, and memory of its own in KiB.
fn holds(pid: &str) -> anyhow::Result<(usize, u64)> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = rollup.lines().find(|line| line.starts_with(name)).context("no such field")?;
        Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
    };
    Ok((descriptors, field("Private_Dirty:")?))
}

fn clones() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    installation.stdout([
        "run",
        "-d",
        "--name",
        "origin",
        "--network",
        "none",
        &image,
        "sleep",
        "1000000",
    ])?;
    let pid =
        |field: &str| installation.stdout(["inspect", "-f", &format!("{{{{.State.{field}}}}}"), "origin"]);
    let (keeper, vmm) = (pid("KeeperPid")?, pid("Pid")?);
    let now = || -> anyhow::Result<[(usize, u64); 2]> { Ok([holds(keeper.trim())?, holds(vmm.trim())?]) };
    let processes = || -> anyhow::Result<String> {
        run(Command::new("pgrep").args(["--count", "--full", &installation.root().display().to_string()]))
    };
    let round = |number: usize| -> anyhow::Result<()> {
        let name = format!("clone{number}");
        installation.stdout(["clone", "origin", "--name", &name])?;
        let said = installation.stdout(["exec", &name, "echo", &name])?;
        ensure!(said.trim() == name, "{said:?}");
        installation.stdout(["rm", "-f", &name]).map(drop)
    };
    // The first ones fill what is kept on purpose.
    (0..3).try_for_each(round)?;
    let (before, processes_before) = (now()?, processes()?);
    let rounds = rounds()?;
    (3..3 + rounds).try_for_each(round)?;
    let (after, processes_after) = (now()?, processes()?);
    println!("{rounds} clones: descriptors and private KiB of keeper and VMM {before:?}, then {after:?}");
    for ((descriptors, kib), (descriptors_after, kib_after)) in before.into_iter().zip(after) {
        ensure!(descriptors_after <= descriptors + 1, "{descriptors} descriptors became {descriptors_after}");
        // Of the VMM it is the guest's memory, which the pages that were shared for a clone come to again.
        ensure!(kib_after < kib + (16 << 10), "{kib} KiB became {kib_after}");
    }
    ensure!(processes_after == processes_before, "{processes_before} processes became {processes_after}");
    let containers = std::fs::read_dir(installation.root().join("containers"))?.count();
    ensure!(containers == 1, "{containers} containers");
    installation.stdout(["rm", "-f", "origin"])?;
    ensure!(installation.leftovers()?.is_empty(), "left behind: {:?}", installation.leftovers()?);
    Ok(())
}
