//! Containers that live longer than one command: their verbs, their logs, shells in them, policies and faults.

use std::io::Write as _;
use std::process::{ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::pty::Pty;
use serde_json::Value;

fn main() -> ExitCode {
    run_tests(vec![
        test("a_container_is_created_started_stopped_and_started_again", &[Need::Kvm], lifecycle),
        test("exec_enters_the_guest_with_environment_user_directory_and_streams", &[Need::Kvm], exec),
        test("a_shell_in_a_container_has_a_terminal_and_is_left_by_keys", &[Need::Kvm], shell),
        test("logs_keep_stream_time_and_order_and_can_be_followed", &[Need::Kvm], logs),
        test("a_slow_reader_loses_nothing_and_the_log_has_it_all", &[Need::Kvm], much_output),
        test("policies_start_again_what_failed_and_what_is_stopped_stays_so", &[Need::Kvm], restart),
        test("health_is_tested_and_a_rented_time_ends", &[Need::Kvm], health_and_ttl),
        test("a_paused_container_does_nothing_and_goes_on", &[Need::Kvm], pause),
        test("a_fraction_of_a_cpu_is_held_and_can_be_changed", &[Need::Kvm, Need::Root], fraction),
        test("verbs_on_what_is_not_there_or_does_not_run_say_so", &[Need::Kvm], bad_input),
        test("a_hundred_names_and_many_commands_at_once_are_told_apart", &[Need::Kvm], many),
    ])
}

const SLEEP: [&str; 2] = ["sleep", "1000"];

/// `lighter run -d --network none --name NAME OPTIONS… IMAGE COMMAND…`
fn run_detached(
    installation: &Installation,
    name: &str,
    options: &[&str],
    command: &[&str],
) -> anyhow::Result<String> {
    let image = busybox_reference()?;
    let mut args = vec!["run", "-d", "--network", "none", "--name", name];
    args.extend(options);
    args.push(&image);
    args.extend(command);
    installation.stdout(args)
}

fn output(installation: &Installation, args: &[&str]) -> anyhow::Result<Output> {
    finish(installation.command(args).spawn()?, GUEST_DEADLINE)
}

fn field(installation: &Installation, name: &str, path: &str) -> anyhow::Result<String> {
    let text = installation.stdout(["inspect", "-f", &format!("{{{{{path}}}}}"), name])?;
    Ok(text.trim_end().to_owned())
}

/// Waits until `path` of `inspect` is `value`.
fn wait_for(installation: &Installation, name: &str, path: &str, value: &str) -> anyhow::Result<()> {
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        let found = field(installation, name, path)?;
        if found == value {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{path} of {name} is {found:?}, not {value:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn lifecycle() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let script = "trap 'echo asked to end; exit 7' TERM; echo begun >> /kept; cat /kept; sleep 1000 & wait";
    let args =
        ["create", "--name", "barge", "-l", "load=coal", "--network", "none", &image, "sh", "-c", script];
    let id = installation.stdout(args)?;
    ensure!(field(&installation, "barge", ".State.Status")? == "created");
    ensure!(installation.stdout(["ps", "-q"])?.is_empty(), "a created container counts as running");
    installation.stdout(["start", "barge"])?;
    ensure!(installation.stdout(["ps", "-q", "--filter", "label=load=coal"])? == id);
    ensure!(installation.stdout(["ps", "-q", "--filter", "label=load=ore"])?.is_empty());
    ensure!(
        output(&installation, &["rm", "barge"])?.status.code() == Some(1),
        "a running container was removed"
    );
    // Its handler is there once it has said something.
    wait_for_log(&installation, "barge", "begun")?;
    installation.stdout(["stop", "barge"])?;
    ensure!(field(&installation, "barge", ".State.ExitCode")? == "7");
    ensure!(installation.stdout(["wait", "barge"])? == "7\n");
    installation.stdout(["rename", "barge", "ferry"])?;
    // The writable layer is still there.
    installation.stdout(["start", "ferry"])?;
    wait_for_log(&installation, "ferry", "begun\nasked to end\nbegun\nbegun\n")?;
    installation.stdout(["kill", "-s", "KILL", "ferry"])?;
    ensure!(installation.stdout(["wait", "ferry"])? == "137\n");
    let ps: Value = serde_json::from_str(&installation.stdout(["ps", "-a", "--format", "json"])?)?;
    ensure!(ps["containers"][0]["Names"] == "ferry" && ps["containers"][0]["State"] == "exited", "{ps}");
    let events =
        installation.stdout(["events", "--since", "1h", "--until", "0s", "--format", "{{.action}}"])?;
    let expected = ["create", "start", "die", "stop", "rename", "start", "kill", "die"];
    ensure!(events.lines().eq(expected), "{events:?}");
    installation.stdout(["rm", "ferry"])?;
    ensure!(installation.leftovers()?.is_empty(), "left behind: {:?}", installation.leftovers()?);
    Ok(())
}

fn wait_for_log(installation: &Installation, name: &str, text: &str) -> anyhow::Result<()> {
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        let log = installation.stdout(["logs", name])?;
        if log.contains(text) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "no {text:?} in {log:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn exec() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    run_detached(&installation, "box", &["-e", "CARGO=coal", "-w", "/home"], &SLEEP)?;
    let guest = installation.stdout(["exec", "box", "uname", "-r"])?;
    ensure!(guest.contains("-lighter"), "exec did not enter the guest: {guest:?}");
    let script = "echo $CARGO $MORE; pwd; id -u; ps | grep -c sleep; cat; echo bad >&2; exit 9";
    let args = ["exec", "-i", "-e", "MORE=ore", "-u", "user", "-w", "/tmp", "box", "sh", "-c", script];
    let mut child = installation.command(args).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(b"typed\n")?;
    let done = finish(child, GUEST_DEADLINE)?;
    let stdout = String::from_utf8_lossy(&done.stdout);
    ensure!(stdout.starts_with("coal ore\n/tmp\n1000\n") && stdout.ends_with("typed\n"), "{stdout:?}");
    ensure!(done.status.code() == Some(9) && done.stderr == b"bad\n", "{done:?}");
    ensure!(output(&installation, &["exec", "box", "no-such"])?.status.code() == Some(127));
    installation.stdout(["exec", "-d", "box", "sh", "-c", "sleep 1; echo done > /tmp/flag"])?;
    let end = Instant::now() + GUEST_DEADLINE;
    while output(&installation, &["exec", "box", "cat", "/tmp/flag"])?.stdout != b"done\n" {
        ensure!(Instant::now() < end, "exec -d did nothing");
    }
    // The container's end ends what runs in it.
    let child = installation.command(["exec", "box", "sleep", "1000"]).spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    installation.stdout(["rm", "-f", "box"])?;
    ensure!(finish(child, GUEST_DEADLINE)?.status.code() == Some(137));
    Ok(())
}

fn shell() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    run_detached(&installation, "box", &["-it"], &["sh"])?;
    let mut terminal = Pty::open(30, 90)?;
    let before = format!("{:?}", terminal.modes()?);
    let mut attached = terminal.spawn(&installation.command(["attach", "box"]))?;
    terminal.type_in("echo si''ze $(stty size)\r")?;
    terminal.expect("size 30 90", GUEST_DEADLINE)?;
    terminal.resize(40, 100)?;
    terminal.type_in("echo si''ze $(stty size)\r")?;
    terminal.expect("size 40 100", GUEST_DEADLINE)?;
    // Job control: the shell stops and continues what runs.
    terminal.type_in("sleep 1000\r")?;
    std::thread::sleep(Duration::from_secs(2));
    terminal.type_in("\x1a")?;
    terminal.expect("Stopped", GUEST_DEADLINE)?;
    terminal.type_in("kill %1; echo al''ive\r")?;
    terminal.expect("alive", GUEST_DEADLINE)?;
    terminal.type_in("\x10\x11")?;
    ended(&mut attached, 0)?;
    ensure!(format!("{:?}", terminal.modes()?) == before, "the terminal did not come back as it was");
    ensure!(
        field(&installation, "box", ".State.Status")? == "running",
        "the detach keys ended the container"
    );

    let mut executed = terminal.spawn(&installation.command(["exec", "-it", "box", "sh"]))?;
    terminal.type_in("vi /tmp/note\r")?;
    terminal.expect("/tmp/note 1/1", GUEST_DEADLINE)?;
    terminal.type_in("iwritten in vi")?;
    terminal.expect("written in vi", GUEST_DEADLINE)?;
    // What follows an escape at once is taken for a key's sequence.
    terminal.type_in("\x1b")?;
    std::thread::sleep(Duration::from_secs(2));
    terminal.type_in(":wq\r")?;
    terminal.expect("# ", GUEST_DEADLINE)?;
    terminal.type_in("echo no''te $(cat /tmp/note)\r")?;
    terminal.expect("note written in vi", GUEST_DEADLINE)?;
    terminal.type_in("top -d 1\r")?;
    terminal.expect("Mem:", GUEST_DEADLINE)?;
    terminal.type_in("q")?;
    terminal.type_in("exit 4\r")?;
    ended(&mut executed, 4)?;
    ensure!(format!("{:?}", terminal.modes()?) == before, "the terminal did not come back as it was");
    installation.stdout(["rm", "-f", "box"])?;
    Ok(())
}

fn ended(child: &mut std::process::Child, code: i32) -> anyhow::Result<()> {
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        match child.try_wait()? {
            Some(status) if status.code() == Some(code) => return Ok(()),
            Some(status) => bail!("it ended with {status}, not {code}"),
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            None => {
                child.kill()?;
                child.wait()?;
                bail!("it did not end");
            }
        }
    }
}

fn logs() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let script = "for i in 1 2 3 4; do echo out $i; echo err $i >&2; sleep 1; done";
    run_detached(&installation, "talker", &[], &["sh", "-c", script])?;
    let followed = output(&installation, &["logs", "-f", "talker"])?;
    ensure!(followed.stdout == b"out 1\nout 2\nout 3\nout 4\n", "{followed:?}");
    ensure!(followed.stderr == b"err 1\nerr 2\nerr 3\nerr 4\n", "{followed:?}");
    let last = output(&installation, &["logs", "-n", "2", "talker"])?;
    ensure!(last.stdout == b"out 4\n" && last.stderr == b"err 4\n", "{last:?}");
    let json = installation.stdout(["logs", "--format", "json", "talker"])?;
    let lines = json.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(lines.iter().any(|line| line["stream"] == "stderr" && line["text"] == "err 3\n"), "{json}");
    let third = lines.iter().find(|line| line["text"] == "out 3\n").context("no third line")?;
    let time = third["time"].as_str().context("no time")?;
    let since = installation.stdout(["logs", "--since", time, "talker"])?;
    ensure!(since == "out 3\nout 4\n", "{since:?}");
    let until = installation.stdout(["logs", "-t", "--until", time, "talker"])?;
    let times: Vec<&str> = until.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(times.len() == 2 && times[0] < times[1] && times[1] < time, "{until:?}");
    ensure!(installation.stdout(["console", "talker"]).is_ok(), "no console");
    installation.stdout(["rm", "talker"])?;
    Ok(())
}

fn much_output() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let script = "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done";
    let args = ["run", "--name", "loud", "--network", "none", &image, "sh", "-c", script];
    let mut child = installation.command(args).spawn()?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let mut read: Vec<u8> = Vec::new();
    let mut buffer = [0; 700];
    loop {
        match std::io::Read::read(&mut stdout, &mut buffer)? {
            0 => break,
            count => read.extend(&buffer[..count]),
        }
        if read.len() < 50_000 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    ensure!(child.wait()?.success());
    let expected: String = (0..40_000).map(|i| format!("line {i}\n")).collect();
    ensure!(read == expected.as_bytes(), "{} of {} bytes came", read.len(), expected.len());
    ensure!(installation.stdout(["logs", "loud"])? == expected, "the log lacks something");
    // The oldest goes where a size is given, the newest stays.
    let options = ["--log-opt", "max-size=64k", "--log-opt", "max-file=2"];
    run_detached(&installation, "capped", &options, &["sh", "-c", script])?;
    installation.stdout(["wait", "capped"])?;
    let kept = installation.stdout(["logs", "capped"])?;
    ensure!(
        kept.ends_with("line 39999\n") && (20_000..300_000).contains(&kept.len()),
        "{} bytes",
        kept.len()
    );
    installation.stdout(["rm", "loud", "capped"])?;
    Ok(())
}

fn restart() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let options = ["--restart", "on-failure:2"];
    run_detached(&installation, "failing", &options, &["sh", "-c", "echo try; exit 3"])?;
    wait_for(&installation, "failing", ".State.Status", "exited")?;
    ensure!(field(&installation, "failing", ".RestartCount")? == "2");
    ensure!(installation.stdout(["logs", "failing"])? == "try\ntry\ntry\n");
    run_detached(&installation, "steady", &["--restart", "always"], &SLEEP)?;
    installation.stdout(["exec", "steady", "sh", "-c", "kill -9 1 || kill 1; true"]).ok();
    installation.stdout(["kill", "steady"])?;
    wait_for(&installation, "steady", ".RestartCount", "1")?;
    wait_for(&installation, "steady", ".State.Status", "running")?;
    installation.stdout(["stop", "-t", "0", "steady"])?;
    ensure!(
        field(&installation, "steady", ".State.Status")? == "exited",
        "what was stopped was started again"
    );
    installation.stdout(["restart", "steady"])?;
    ensure!(field(&installation, "steady", ".State.Status")? == "running");
    let both = output(&installation, &["run", "--rm", "--restart", "always", "x"])?;
    ensure!(both.status.code() == Some(125) && String::from_utf8_lossy(&both.stderr).contains("exclude"));
    installation.stdout(["rm", "-f", "failing", "steady"])?;
    Ok(())
}

fn health_and_ttl() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let options =
        ["--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1", "--ttl", "60s"];
    run_detached(&installation, "patient", &options, &SLEEP)?;
    wait_for(&installation, "patient", ".State.Health.Status", "unhealthy")?;
    installation.stdout(["exec", "patient", "touch", "/well"])?;
    wait_for(&installation, "patient", ".State.Health.Status", "healthy")?;
    ensure!(installation.stdout(["ps"])?.contains("(healthy)"));
    installation.stdout(["rm", "-f", "patient"])?;
    run_detached(&installation, "rented", &["--ttl", "4s", "--stop-timeout", "1"], &SLEEP)?;
    wait_for(&installation, "rented", ".State.Status", "exited")?;
    let events =
        ["events", "--since", "1h", "--until", "0s", "-f", "container=rented", "--format", "{{.action}}"];
    let events = installation.stdout(events)?;
    ensure!(events.lines().eq(["create", "start", "ttl-warning", "ttl", "die"]), "{events:?}");
    installation.stdout(["rm", "rented"])?;
    Ok(())
}

fn pause() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let script = "while true; do echo tick; sleep 0.2; done";
    run_detached(&installation, "clock", &[], &["sh", "-c", script])?;
    wait_for_log(&installation, "clock", "tick")?;
    installation.stdout(["pause", "clock"])?;
    let length = || Ok::<_, anyhow::Error>(installation.stdout(["logs", "clock"])?.len());
    std::thread::sleep(Duration::from_millis(300));
    let before = length()?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(length()? == before, "a paused container goes on");
    ensure!(installation.stdout(["ps"])?.contains("(Paused)"));
    let refused = output(&installation, &["exec", "clock", "true"])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("unpause"), "{refused:?}");
    ensure!(output(&installation, &["pause", "clock"])?.status.code() == Some(1));
    installation.stdout(["unpause", "clock"])?;
    let end = Instant::now() + GUEST_DEADLINE;
    while length()? == before {
        ensure!(Instant::now() < end, "an unpaused container does not go on");
    }
    installation.stdout(["pause", "clock"])?;
    installation.stdout(["stop", "-t", "1", "clock"])?;
    installation.stdout(["rm", "clock"])?;
    Ok(())
}

fn fraction() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let spin = ["sh", "-c", "while true; do :; done"];
    run_detached(&installation, "spin", &["--cpus", "0.25", "-m", "128m"], &spin)?;
    let pid = field(&installation, "spin", ".State.Pid")?;
    let ticks = || -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    for (cpus, share) in [("0.25", 250), ("0.4", 400)] {
        installation.stdout(["update", "--cpus", cpus, "spin"])?;
        std::thread::sleep(Duration::from_secs(1));
        let before = ticks()?;
        std::thread::sleep(Duration::from_secs(10));
        let took = ticks()? - before;
        // What is missing may be others' doing; what is too much is ours.
        ensure!(took <= share * 11 / 10, "--cpus {cpus} took {took} of {share} ticks");
        ensure!(took >= share / 2, "--cpus {cpus} took only {took} of {share} ticks");
    }
    let stats = installation.stdout(["stats", "--no-stream", "--format", "json", "spin"])?;
    let stats: Value = serde_json::from_str(&stats)?;
    let spin = &stats["containers"][0];
    let cpu = spin["cpu_percent"].as_f64().context("no cpu_percent")?;
    ensure!(cpu > 1.0 && cpu < 60.0, "{cpu} % of a CPU");
    let bytes = |part: &str, name: &str| spin["stats"][part][name].as_u64().unwrap_or(0);
    let (total, used) = (bytes("guest", "total"), bytes("guest", "used"));
    ensure!(total > 100 << 20 && total < 192 << 20 && used > 0 && used < total, "{stats}");
    let (vmm, given) = (bytes("host", "vmm_pss"), bytes("host", "guest_pss"));
    ensure!(vmm > 100 << 10 && vmm < 32 << 20 && given > 1 << 20 && given < total, "{stats}");
    let metrics = installation.stdout(["stats", "--format", "prometheus"])?;
    let line = metrics.lines().find(|line| line.starts_with("lighter_container_cpu_seconds_total{"));
    let seconds: f64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).context(metrics)?;
    ensure!(seconds > 1.0, "{seconds} s of a CPU");
    let id = field(&installation, "spin", ".Id")?;
    let memory = field(&installation, "spin", ".HostConfig.Resources.memory")?.parse::<u64>()?;
    ensure!(memory > 128 << 20 && memory < 192 << 20, "{memory} bytes");
    installation.stdout(["rm", "-f", "spin"])?;
    let left = std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &id]).output()?;
    ensure!(left.stdout.is_empty(), "left behind: {}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}

fn bad_input() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    installation.stdout(["create", "--name", "idle", "--network", "none", &image, "true"])?;
    let said = |args: &[&str]| -> anyhow::Result<String> {
        let output = output(&installation, args)?;
        ensure!(!output.status.success(), "{args:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for verb in ["start", "stop", "kill", "pause", "rm", "wait", "logs", "inspect", "attach", "console"] {
        let text = said(&[verb, "nobody"])?;
        ensure!(text.contains("\"nobody\"") && text.contains("no such container"), "{verb}: {text}");
    }
    for verb in ["kill", "pause", "unpause", "attach"] {
        let text = said(&[verb, "idle"])?;
        ensure!(text.contains("idle") && text.contains("not running"), "{verb}: {text}");
    }
    ensure!(said(&["exec", "idle", "true"])?.contains("lighter start idle"));
    ensure!(said(&["rename", "idle", "a/b"])?.contains("no name"));
    ensure!(said(&["create", "--name", "idle", &image, "true"])?.contains("in use"));
    ensure!(said(&["kill", "-s", "NOPE", "idle"])?.contains("NOPE"));
    ensure!(said(&["ps", "--filter", "colour=red"])?.contains("ancestor"));
    ensure!(said(&["ps", "-a", "--format", "{{.Nmae}}"])?.contains("Names"));
    ensure!(said(&["run", "--restart", "often", &image])?.contains("on-failure"));
    ensure!(said(&["run", "--ttl", "soon", &image])?.contains("soon"));
    ensure!(said(&["logs", "-n", "few", "idle"])?.contains("few"));
    installation.stdout(["rm", "idle"])?;
    ensure!(installation.leftovers()?.is_empty());
    Ok(())
}

/// Needs no machine: `create` alone makes none where its template is not wanted.
fn many() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let create = |name: String| {
        installation
            .command(["create", "--cold", "--name", &name, "--network", "none", &image, "true"])
            .spawn()
    };
    for batch in 0..10 {
        let children =
            (0..10).map(|n| create(format!("c{}", batch * 10 + n))).collect::<Result<Vec<_>, _>>()?;
        for child in children {
            let output = finish(child, GUEST_DEADLINE)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let names = installation.stdout(["ps", "-a", "--format", "{{.Names}}"])?;
    ensure!(names.lines().count() == 100, "{} containers", names.lines().count());
    // One name for ten commands at once: one of them gets it.
    let children = (0..10).map(|_| create("wanted".to_owned())).collect::<Result<Vec<_>, _>>()?;
    let outputs =
        children.into_iter().map(|child| finish(child, GUEST_DEADLINE)).collect::<Result<Vec<_>, _>>()?;
    ensure!(outputs.iter().filter(|output| output.status.success()).count() == 1);
    installation.stdout(["container", "prune", "--force"])?;
    ensure!(installation.leftovers()?.is_empty(), "left behind: {:?}", installation.leftovers()?);
    Ok(())
}
