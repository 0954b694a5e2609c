//! Templates: made by the first run of an image, cloned by the others, and nothing of one run in another.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use serde_json::Value;

/// By how much a clone's wall clock may be off.
const CLOCK_TOLERANCE_NS: i128 = 50_000_000;
/// Clones that are compared with each other.
const CLONES: usize = 5;

fn main() -> ExitCode {
    run_tests(vec![
        test("the_first_run_makes_a_template_and_later_ones_clone_it", &[Need::Kvm], made_and_cloned),
        test("clones_differ_in_all_that_must_differ_and_know_the_time", &[Need::Kvm], clones_differ),
        test("two_first_runs_at_once_make_one_template", &[Need::Kvm], at_once),
        test("a_damaged_template_is_made_anew", &[Need::Kvm], damaged),
        test("a_template_removed_under_its_clone_does_not_matter", &[Need::Kvm], removed),
    ])
}

fn run<'a>(image: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--rm", "--network", "none", image], command].concat()
}

/// Names of the phases of a run with `options`.
fn phases(installation: &Installation, options: &[&str]) -> anyhow::Result<Vec<String>> {
    let image = busybox_reference()?;
    let args = [&["run", "--rm", "--network", "none", "--trace=json"], options, &[&image, "true"]].concat();
    let output = finish(installation.command(args).spawn()?, GUEST_DEADLINE)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    let trace: Value = serde_json::from_str(stderr.trim()).with_context(|| stderr.to_string())?;
    let phases = trace["phases"].as_array().context("no phases")?;
    Ok(phases.iter().filter_map(|phase| Some(phase["name"].as_str()?.to_owned())).collect())
}

/// How many templates there are.
fn count(installation: &Installation) -> anyhow::Result<u64> {
    let usage: Value = serde_json::from_str(&installation.stdout(["system", "df", "--format", "json"])?)?;
    usage["templates"]["count"].as_u64().context("no count of templates")
}

fn made_and_cloned() -> anyhow::Result<()> {
    let installation = Installation::without_templates()?;
    let has = |phases: &[String], name: &str| phases.iter().any(|phase| phase == name);
    let cold = phases(&installation, &["--cold"])?;
    ensure!(has(&cold, "kernel") && !has(&cold, "resume"), "{cold:?}");
    ensure!(count(&installation)? == 0);
    for _ in 0..2 {
        let warm = phases(&installation, &[])?;
        ensure!(has(&warm, "resume") && !has(&warm, "kernel"), "{warm:?}");
        // The machine's and the image's.
        ensure!(count(&installation)? == 2);
    }
    // Another shape is another machine.
    phases(&installation, &["--read-only"])?;
    ensure!(count(&installation)? == 4);
    let pruned = installation.stdout(["system", "prune", "--force"])?;
    ensure!(pruned.contains("4 templates") && count(&installation)? == 0, "{pruned}");
    ensure!(installation.leftovers()?.is_empty());
    Ok(())
}

fn now_ns() -> anyhow::Result<i128> {
    Ok(i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

fn clones_differ() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let script = "/guest/moment; head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid \
                  /proc/sys/kernel/random/boot_id; hostname";
    let mut seen = HashSet::new();
    for _ in 0..CLONES {
        let before = now_ns()?;
        let said = installation.stdout(run(&image, &["sh", "-c", script]))?;
        let after = now_ns()?;
        let mut lines = said.lines();
        let (time, random) = lines.next().and_then(|line| line.split_once(' ')).context("no moment")?;
        let time: i128 = time.parse()?;
        let off = (before - time).max(time - after);
        ensure!(off <= CLOCK_TOLERANCE_NS, "the clone's clock is off by {off} ns or more");
        ensure!(seen.insert(random.to_owned()), "getrandom gave {random} twice");
        for line in lines {
            ensure!(seen.insert(line.to_owned()), "{line} came twice");
        }
    }
    ensure!(seen.len() == CLONES * 5, "{seen:?}");
    Ok(())
}

fn at_once() -> anyhow::Result<()> {
    let installation = Installation::without_templates()?;
    let image = busybox_reference()?;
    let children: Vec<_> = (0..2)
        .map(|_| installation.command(run(&image, &["echo", "up"])).spawn())
        .collect::<Result<_, _>>()?;
    for child in children {
        let output = finish(child, GUEST_DEADLINE)?;
        ensure!(output.stdout == b"up\n", "{}", String::from_utf8_lossy(&output.stderr));
    }
    // The machine's and the image's.
    ensure!(count(&installation)? == 2);
    Ok(())
}

/// Damages the saved state of every template of `installation`, or of the images' alone, which have a layer.
fn damage(installation: &Installation, machines_too: bool) -> anyhow::Result<()> {
    let mut damaged = 0;
    for entry in std::fs::read_dir(installation.root().join("templates"))? {
        let template = entry?.path();
        if !machines_too && !template.join("layer.ext4").exists() {
            continue;
        }
        let state = template.join("snapshot/state");
        let mut bytes = std::fs::read(&state)?;
        *bytes.last_mut().context("an empty state")? ^= 1;
        std::fs::write(&state, bytes)?;
        damaged += 1;
    }
    ensure!(damaged > 0, "there is no template");
    Ok(())
}

fn damaged() -> anyhow::Result<()> {
    let installation = Installation::without_templates()?;
    let image = busybox_reference()?;
    let say_up = || finish(installation.command(run(&image, &["echo", "up"])).spawn()?, GUEST_DEADLINE);
    installation.stdout(run(&image, &["true"]))?;
    for machines_too in [false, true] {
        damage(&installation, machines_too)?;
        let output = say_up()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.stdout == b"up\n" && stderr.contains("damaged"), "{stderr}");
        // The new one is whole.
        let output = say_up()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.stdout == b"up\n" && output.stderr.is_empty(), "{stderr}");
    }
    Ok(())
}

fn removed() -> anyhow::Result<()> {
    let installation = Installation::without_templates()?;
    let image = busybox_reference()?;
    let script = "echo up; cat; ls /bin | wc -l";
    let args = ["run", "--rm", "-i", "--network", "none", &image, "sh", "-c", script];
    let mut child = installation.command(args).stdin(Stdio::piped()).spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    ensure!(line == "up\n", "{line:?}");
    let pruned = installation.stdout(["system", "prune", "--force"])?;
    // The machine's, but not the image's, which is in use.
    ensure!(pruned.contains(" 1 templates"), "a template in use was pruned: {pruned}");
    std::fs::remove_dir_all(installation.root().join("templates"))?;
    child.stdin.take().context("no stdin")?.write_all(b"still here\n")?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    ensure!(rest.starts_with("still here\n") && rest.trim_end().ends_with(char::is_numeric), "{rest:?}");
    ensure!(finish(child, GUEST_DEADLINE)?.status.success());
    Ok(())
}
