//! `lighter compare`: reports of a short run, partial ones, and the page in a real browser.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use serde_json::Value;

const NEEDS: &[Need] = &[Need::Root, Need::Program("runc")];
const MACHINE: &[Need] = &[Need::Kvm, Need::Root];
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
        test(
            "a_vm_holds_what_a_container_lets_through_until_its_disk_is_larger_than_the_hosts",
            MACHINE,
            machine,
        ),
        test("what_a_container_lets_through_can_be_held_there_too", NEEDS, narrowed),
        test("figures_can_be_traced_to_their_samples_and_come_again", NEEDS, figures),
        test("the_page_draws_its_plots_in_a_browser", BROWSER, page),
        test("a_run_that_is_stopped_or_too_long_gives_what_there_is", NEEDS, partial),
        test("what_cannot_be_measured_is_said", NEEDS, unfit),
        test("a_column_that_this_host_cannot_run_says_why_and_the_others_are_measured", NEEDS, columns),
    ])
}

/// `lighter compare --quick …` of the columns without VMs, which are measured within seconds.
fn compare(format: &str, options: &[&str], command: &[&str]) -> anyhow::Result<Command> {
    let image = busybox_reference()?;
    let mut args = vec!["compare", "--quick", "--format", format];
    if !options.contains(&"--isolation") {
        args.extend(["--isolation", "process,container"]);
    }
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
    ensure!(attempts.len() == 20, "{attempts:#?}");
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
        "neighbour_files",
        "neighbour_memory",
    ];
    for id in expected {
        ensure!(held.contains(&id), "a container lets {id} through: {attempts:#?}");
    }
    for id in ["kernel", "leaks", "system_calls", "forks", "raw_sockets", "disk_filler", "neighbour_network"]
    {
        ensure!(!held.contains(&id), "a container cannot hold {id}: {attempts:#?}");
    }
    Ok(())
}

/// Everything but what a machine's own network lets out; and a disk larger than what the host has left is open.
fn machine() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let args = [
        "compare",
        "--quick",
        "--limit",
        "4m",
        "--only",
        "isolation",
        "--isolation",
        "vm",
        "--format",
        "json",
    ];
    let installation = Installation::shared()?;
    let command = { installation.command(args.iter().copied().chain([image.as_str()])) }.spawn()?;
    let output = finish(command, GUEST_DEADLINE)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let attempts = list(&report, "attempts")?;
    let open = attempts.iter().filter(|attempt| attempt["found"]["vm"]["open"] == true);
    let open: Vec<_> = open.filter_map(|attempt| attempt["id"].as_str()).collect();
    ensure!(attempts.len() == 20, "{report:#}\n{stderr}");
    ensure!(open == ["raw_sockets", "neighbour_network"], "a VM lets through: {open:?}");
    // A host whose disk has less left than the VM's.
    let image = probe_image(installation)?;
    let told = installation.stdout(["run", "--rm", &image, "/probe", "isolation", "disk=67108864"])?;
    ensure!(told.contains("disk_filler open") && told.contains("of 64 MiB"), "{told}");
    Ok(())
}

/// The image that comparisons run the probe in; made by the first one.
fn probe_image(installation: &Installation) -> anyhow::Result<String> {
    let probes = std::fs::read_dir(installation.root().join("probe"))?.next().context("no probe")??.path();
    Ok(format!("dir:{}", probes.display()))
}

/// The attempts that a container lets through by default, by the probe itself: with fewer capabilities, without a
/// network, on a file system of a limited size.
fn narrowed() -> anyhow::Result<()> {
    let installation = Installation::shared()?;
    let shown = report(&["--only", "portability"], &[])?;
    let answers = |number: usize| shown["portability"][number]["answers"].to_string();
    ensure!(
        answers(0).matches("yes: a tar archive").count() == 2 && answers(1).contains("no: "),
        "{shown:#}"
    );
    let image = probe_image(installation)?;
    let probe = |options: &[&str], command: &[&str]| {
        let base = ["run", "--rm", "--isolation", "container"];
        installation.stdout(
            base.iter()
                .chain(options)
                .copied()
                .chain([image.as_str(), "/probe"])
                .chain(command.iter().copied()),
        )
    };
    let neighbour = [
        "run",
        "-d",
        "-i",
        "--name",
        "neighbour",
        "--isolation",
        "container",
        &image,
        "/probe",
        "hold",
        "0",
        "word",
    ];
    installation.stdout(neighbour)?;
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let said = loop {
        let said = installation.stdout(["logs", "neighbour"])?;
        if said.contains("ready") || std::time::Instant::now() > end {
            break said;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let address = format!("address={}", said.split_whitespace().nth(3).context("no address")?);
    let attempts = ["isolation", "neighbour=word", &address, "disk=1"];
    let is = |text: &str, name: &str, verdict: &str| text.contains(&format!("{name} {verdict} "));
    let usual = probe(&[], &attempts)?;
    let narrow = probe(&["--cap-drop", "NET_RAW", "--network", "none"], &attempts)?;
    installation.stdout(["rm", "-f", "neighbour"])?;
    for name in ["raw_sockets", "neighbour_network"] {
        ensure!(is(&usual, name, "open") && is(&narrow, name, "held"), "{name}:\n{usual}\n{narrow}");
    }
    // A filler really ends where its file system does, and has as much as that gives.
    let disk = ["--tmpfs", "/small:size=2m"];
    let filled = |mib| probe(&disk, &["fill_disk", "/small/file", mib]);
    ensure!(filled("1")? == "filled\n" && filled("4")?.contains("No space left"), "{}", filled("4")?);
    // Without a limit the memory bomb gets what it wants.
    ensure!(probe(&[], &["fill", "64"])? == "filled\n", "64 MiB are too much for this host");
    Ok(())
}

fn figures() -> anyhow::Result<()> {
    // It takes processor time, and memory for a line of 24 MiB.
    let command = ["sh", "-c", "echo hello; head -c 24000000 /dev/zero | tail -n 1 | wc -c"];
    let report = report(&["--only", "start,speed,size", "--runs", "3"], &command)?;
    ensure!(report["schema"] == "lighter.compare.v1" && report["partial"].is_null(), "{report:#}");
    let rows = list(&report, "rows")?;
    ensure!(rows.len() == 4 + 14 + 5, "{} rows", rows.len());
    for row in rows {
        for column in ["process", "container"] {
            let figure = &row["figures"][column];
            let samples: Vec<f64> = list(figure, "samples")?.iter().filter_map(Value::as_f64).collect();
            // Free memory of the host is what others leave.
            let others = matches!(row["id"].as_str(), Some("free" | "crowd"));
            ensure!(others || samples.iter().all(|sample| *sample > 0.0), "{row:#}");
            let shown = ["median", "p99", "spread"].map(|name| figure[name].as_f64().unwrap_or(f64::NAN));
            let again = summarized(&samples);
            // JSON rounds the last digit.
            let is_same = |(one, other): (&f64, &f64)| (one - other).abs() <= other.abs() * 1e-9;
            ensure!(shown.iter().zip(&again).all(is_same), "{again:?} of {row:#}");
            if row["id"] == "peak" {
                ensure!(shown[0] >= 22.0, "24 MB were held: {row:#}");
            }
        }
    }
    agree(&report, &command)?;
    let phases = list(&report["phases"], "container")?;
    ensure!(phases.iter().any(|phase| phase[0] == "exec"), "{phases:?}");
    ensure!(report["host"]["emulated"].is_boolean() || report["host"]["emulated"].is_null(), "{report:#}");
    Ok(())
}

/// Median, p99 and spread, as docs/compare.md defines them.
fn summarized(samples: &[f64]) -> [f64; 3] {
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let rank =
        |values: &[f64], share: f64| values[((values.len() as f64 * share).ceil() as usize).max(1) - 1];
    let values = sorted(samples.to_vec());
    let half = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
    let distances = sorted(samples.iter().map(|sample| (sample - median).abs()).collect());
    [median, rank(&values, 0.99), rank(&distances, 0.9)]
}

/// Once more: the size of the image is the same, and what computes is within what both spread. Where another process
/// has come or gone between two measurements a third one decides.
fn agree(first: &Value, command: &[&str]) -> anyhow::Result<()> {
    let figure = |report: &Value, id: &str, column: &str| {
        let rows = report["rows"].as_array().into_iter().flatten();
        let figures = rows.filter(|row| row["id"] == id).map(|row| row["figures"][column].clone()).next();
        figures.and_then(|figure| Some((figure["median"].as_f64()?, figure["spread"].as_f64()?)))
    };
    let mut reports = vec![first.clone()];
    for _ in 0..2 {
        reports.push(report(&["--only", "speed,size"], command)?);
        let is_near = |one: &Value, other: &Value| {
            ["process", "container"].iter().all(|column| {
                let near = |id: &str| match (figure(one, id, column), figure(other, id, column)) {
                    (Some((a, spread)), Some((b, more))) => (a - b).abs() <= spread + more,
                    _ => false,
                };
                near("disk") && near("integer") && near("float")
            })
        };
        let (last, before) = reports.split_last().context("no report")?;
        if before.iter().any(|report| is_near(report, last)) {
            return Ok(());
        }
    }
    let seen = ["disk", "integer", "float"].map(|id| {
        reports
            .iter()
            .map(|report| ["process", "container"].map(|column| figure(report, id, column)))
            .collect::<Vec<_>>()
    });
    anyhow::bail!("three runs do not agree: {seen:?}")
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
        ensure!(counts.len() == 4 && counts.iter().all(|count| *count >= 6), "{drawn}");
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
    // A command that never ends, such as a server: it is ended, and the time to its first byte stays.
    let server = report(
        &["--only", "start", "--isolation", "container"],
        &["sh", "-c", "trap exit TERM; echo up; while :; do sleep 0.1; done"],
    )?;
    let rows: Vec<_> = list(&server, "rows")?.iter().filter_map(|row| row["id"].as_str()).collect();
    ensure!(rows.contains(&"start") && !rows.contains(&"whole") && server["partial"].is_null(), "{server:#}");
    ensure!(
        list(&server, "notes")?.iter().any(|note| note.to_string().contains("did not end")),
        "{server:#}"
    );
    // The limit ends everything, and what was measured before stays.
    let options = ["--only", "start,speed", "--isolation", "process", "--limit", "8s", "--runs", "1000"];
    let slow = report(&options, &["echo", "hello"])?;
    ensure!(slow["partial"].as_str().is_some_and(|why| why.contains("8 s")), "{slow:#}");
    ensure!(list(&slow, "rows")?.iter().any(|row| row["id"] == "start"), "{slow:#}");
    // Ctrl-C.
    let own = Installation::new()?;
    let image = busybox_reference()?;
    let args = [
        "compare",
        "--format",
        "json",
        "--isolation",
        "process,container",
        "--only",
        "start",
        "--runs",
        "1000",
    ];
    let mut child = own.command(args.into_iter().chain([&*image, "--", "echo", "hello"])).spawn()?;
    let pid = rustix::process::Pid::from_child(&child);
    let mut progress = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    ensure!(progress.any(|line| line.is_ok_and(|line| line.contains("start 3/"))), "it measures nothing");
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let output = finish(child, DEADLINE)?;
    ensure!(output.status.code() == Some(130), "{:?}", output.status);
    let stopped: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(stopped["partial"].as_str().is_some_and(|why| why.contains("user")), "{stopped:#}");
    ensure!(list(&stopped, "rows")?.iter().any(|row| row["id"] == "start"), "{stopped:#}");
    ensure!(
        !own.stdout(["ps", "-q"])?.contains(char::is_alphanumeric) && own.leftovers()?.is_empty(),
        "a container was left: {:?}",
        own.leftovers()?
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
    ensure!(list(&other, "rows")?.len() == 4, "a command that ends with 3 was not measured: {other:#}");
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

/// No KVM, no OCI runtime, no privilege.
fn columns() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let installation = Installation::shared()?;
    let measured = |mut command: Command| -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let output = finish(command.spawn()?, DEADLINE)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let missing = list(&report, "missing")?
            .iter()
            .map(|missing| format!("{}: {}", missing["column"], missing["reason"]));
        let rows = list(&report, "rows")?.iter().filter(|row| row["id"] == "start");
        let there = rows.flat_map(|row| {
            row["figures"].as_object().into_iter().flat_map(|figures| figures.keys().cloned())
        });
        Ok((missing.collect(), there.collect()))
    };
    let args =
        ["compare", "--quick", "--only", "start", "--runs", "1", "--format", "json", &image, "--", "true"];
    // A device that is none, in a mount namespace of its own.
    let plain = installation.command(args);
    let mut without_kvm = Command::new("unshare");
    without_kvm
        .args(["-m", "sh", "-c", "mount --bind /dev/null /dev/kvm && exec \"$0\" \"$@\""])
        .arg(plain.get_program());
    without_kvm
        .args(plain.get_args())
        .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    without_kvm.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let without_kvm = if Path::new("/dev/kvm").exists() { without_kvm } else { installation.command(args) };
    let (missing, there) = measured(without_kvm)?;
    ensure!(there == ["container", "process"] && missing.len() == 2, "{missing:?} {there:?}");
    ensure!(missing.iter().all(|why| why.contains("vm") && why.contains("lighter doctor")), "{missing:?}");
    let few = [&["compare", "--isolation", "process,container"], &args[1..]].concat();
    let mut without_runc = installation.command(&few);
    without_runc.env("LIGHTER_RUNC", "/no/such/runc");
    let (missing, there) = measured(without_runc)?;
    ensure!(
        there == ["process"] && missing.len() == 1 && missing[0].contains("apt install runc"),
        "{missing:?}"
    );
    // Nobody's.
    let place = tempfile::tempdir()?;
    std::os::unix::fs::chown(place.path(), Some(65534), Some(65534))?;
    let program = place.path().join("lighter");
    std::fs::copy(installation.command(&few).get_program(), &program)?;
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(&few);
    nobody.env("LIGHTER_ROOT", place.path().join("data")).env("LIGHTER_RUN", place.path().join("run"));
    nobody.env("HOME", place.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (missing, there) = measured(nobody)?;
    ensure!(there.is_empty() && missing.len() == 2, "{missing:?} {there:?}");
    ensure!(missing.iter().all(|why| why.contains("needs root")), "{missing:?}");
    Ok(())
}
