//! `lighter compare`: reports of a short run, partial ones, and the page in a real browser.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{Installation, finish};
use serde_json::Value;

const NEEDS: &[Need] = &[Need::Root, Need::Program("runc")];
const BROWSER: &[Need] = &[Need::Root, Need::Program("runc"), Need::Program("chromium")];
/// Without VMs a short report takes seconds.
const DEADLINE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    run_tests(vec![
        test(
            "every_attempt_gets_through_where_nothing_holds_and_is_held_where_something_does",
            NEEDS,
            attempts,
        ),
        test("figures_can_be_traced_to_their_samples", NEEDS, figures),
        test("the_page_draws_its_plots_in_a_browser", BROWSER, page),
        test("a_run_that_is_stopped_or_too_long_gives_what_there_is", NEEDS, partial),
        test("what_cannot_be_measured_is_said", NEEDS, unfit),
    ])
}

/// `lighter compare --quick …` of the columns without VMs, which are measured within seconds.
fn compare(format: &str, options: &[&str], command: &[&str]) -> anyhow::Result<Command> {
    let image = busybox_reference()?;
    let mut args = vec!["compare", "--quick", "--isolation", "process,container", "--format", format];
    args.extend(options);
    args.extend([image.as_str(), "--"]);
    args.extend(command);
    Ok(Installation::shared()?.command(args))
}

fn report(options: &[&str], command: &[&str]) -> anyhow::Result<Value> {
    let output = finish(compare("json", options, command)?.spawn()?, DEADLINE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn list<'a>(value: &'a Value, name: &str) -> anyhow::Result<&'a Vec<Value>> {
    value[name].as_array().with_context(|| format!("no {name} in {value}"))
}

/// A chroot holds nothing, so there each attempt shows that it can succeed; a container holds most of them.
fn attempts() -> anyhow::Result<()> {
    let report = report(&["--only", "isolation"], &[])?;
    let attempts = list(&report, "attempts")?;
    ensure!(attempts.len() == 16, "{attempts:#?}");
    let mut held = Vec::new();
    for attempt in attempts {
        let open = |column: &str| attempt["found"][column]["open"].as_bool();
        let id = attempt["id"].as_str().unwrap_or_default();
        // A kernel without modules loads none for anybody.
        let possible = id != "modules" || Path::new("/proc/modules").exists();
        ensure!(open("process") == Some(possible), "a chroot holds {id}: {attempt:#}");
        held.extend((open("container") == Some(false)).then_some(id));
    }
    let expected = [
        "processes",
        "kernel_log",
        "device_nodes",
        "clock",
        "modules",
        "mount",
        "trace",
        "files",
        "loopback",
        "unix_socket",
        "memory_bomb",
    ];
    for id in expected {
        ensure!(held.contains(&id), "a container lets {id} through: {attempts:#?}");
    }
    for id in ["kernel", "system_calls", "forks"] {
        ensure!(!held.contains(&id), "a container cannot hold {id}: {attempts:#?}");
    }
    Ok(())
}

fn figures() -> anyhow::Result<()> {
    let report = report(&["--only", "start,speed", "--runs", "3"], &["echo", "hello"])?;
    ensure!(report["schema"] == "lighter.compare.v1" && report["partial"].is_null(), "{report:#}");
    let rows = list(&report, "rows")?;
    ensure!(rows.len() == 2 + 14, "{} rows", rows.len());
    for row in rows {
        for column in ["process", "container"] {
            let figure = &row["figures"][column];
            let mut samples: Vec<f64> = list(figure, "samples")?.iter().filter_map(Value::as_f64).collect();
            samples.sort_by(f64::total_cmp);
            let median = figure["median"].as_f64().context("no median")?;
            ensure!(samples.iter().all(|sample| *sample > 0.0), "{row:#}");
            ensure!(samples.len().is_multiple_of(2) || samples[samples.len() / 2] == median, "{row:#}");
        }
    }
    let phases = list(&report["phases"], "container")?;
    ensure!(phases.iter().any(|phase| phase[0] == "exec"), "{phases:?}");
    ensure!(report["host"]["emulated"].is_boolean() || report["host"]["emulated"].is_null(), "{report:#}");
    Ok(())
}

fn page() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("report.html");
    let options = ["--only", "start,isolation", "--runs", "2", "-o", page.to_str().context("a path")?];
    let made = finish(compare("html", &options, &["echo", "hello"])?.spawn()?, DEADLINE)?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // A copy of the page asks itself for the size of everything that is drawn.
    let text = std::fs::read_to_string(&page)?;
    let script = "<script>addEventListener('load', () => {
        const drawn = [...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('rect, text, polyline, line')]
            .filter(node => { const box = node.getBoundingClientRect(); return box.width + box.height > 0; }).length);
        const bars = [...document.querySelectorAll('svg rect')].filter(node => node.getBoundingClientRect().width >= 2).length;
        document.body.dataset.drawn = drawn.join(','); document.body.dataset.bars = bars;
        const seen = getComputedStyle(document.body); document.body.dataset.ink = seen.color + ' on ' + seen.backgroundColor;
        }); </script></body>";
    std::fs::write(directory.path().join("probe.html"), text.replace("</body>", script))?;
    for dark in [false, true] {
        let dom = browse(&directory.path().join("probe.html"), directory.path(), dark)?;
        let attribute =
            |name: &str| dom.split(&format!("data-{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        let drawn = attribute("drawn").context("the page did not load")?;
        let counts: Vec<usize> = drawn.split(',').filter_map(|count| count.parse().ok()).collect();
        ensure!(counts.len() == 2 && counts.iter().all(|count| *count >= 6), "{drawn}");
        ensure!(
            attribute("bars").and_then(|bars| bars.parse().ok()).is_some_and(|bars: usize| bars >= 4),
            "no bars"
        );
        let ink = attribute("ink").context("no colours")?;
        ensure!(ink.contains(if dark { "rgb(22, 24, 26)" } else { "rgb(255, 255, 255)" }), "{ink}");
    }
    Ok(())
}

/// The page's document after it was loaded and drawn.
fn browse(page: &Path, profiles: &Path, dark: bool) -> anyhow::Result<String> {
    let mut chromium = Command::new("chromium");
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]);
    chromium.args([
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]);
    chromium.arg(format!("--user-data-dir={}", profiles.join(if dark { "dark" } else { "light" }).display()));
    if dark {
        chromium.arg("--force-dark-mode").arg("--blink-settings=preferredColorScheme=0");
    }
    chromium.arg(format!("file://{}", page.display()));
    let child = chromium.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = finish(child, DEADLINE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn partial() -> anyhow::Result<()> {
    // A command that never ends: the limit ends it, and what was measured before stays.
    let slow = report(&["--only", "isolation,start", "--limit", "8s"], &["sleep", "1000"])?;
    ensure!(slow["partial"].as_str().is_some_and(|why| why.contains("8 s")), "{slow:#}");
    // Ctrl-C.
    let child = compare("json", &["--only", "start", "--runs", "1000"], &["echo", "hello"])?.spawn()?;
    let pid = rustix::process::Pid::from_child(&child);
    std::thread::sleep(Duration::from_secs(6));
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let output = finish(child, DEADLINE)?;
    ensure!(output.status.code() == Some(130), "{:?}", output.status);
    let stopped: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(stopped["partial"].as_str().is_some_and(|why| why.contains("user")), "{stopped:#}");
    ensure!(list(&stopped, "rows")?.iter().any(|row| row["id"] == "start"), "{stopped:#}");
    ensure!(
        !Installation::shared()?.stdout(["ps", "-q"])?.contains(char::is_alphanumeric),
        "a container was left"
    );
    Ok(())
}

fn unfit() -> anyhow::Result<()> {
    let nothing = report(&["--only", "start", "--runs", "1"], &["no-such-program"])?;
    ensure!(list(&nothing, "rows")?.is_empty(), "{nothing:#}");
    ensure!(
        list(&nothing, "notes")?.iter().any(|note| note.to_string().contains("no-such-program")),
        "{nothing:#}"
    );
    let other = report(&["--only", "start", "--runs", "1"], &["sh", "-c", "echo x; exit 3"])?;
    ensure!(list(&other, "rows")?.len() == 2, "a command that ends with 3 was not measured: {other:#}");
    for (options, named) in [
        (["--runs", "0"], "--runs"),
        (["--limit", "soon"], "--limit"),
        (["-o", "/no/such/place"], "/no/such"),
    ] {
        let output = finish(compare("json", &options, &["true"])?.spawn()?, DEADLINE)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(125) && stderr.contains(named), "{options:?}: {stderr}");
    }
    Ok(())
}
