//! `lighter run`: what the process in the guest sees and what the caller gets back.

use std::io::{Read, Write};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, oci_layout};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use rustix::process::{Pid, Signal, kill_process};

const GUEST: &[Need] = &[Need::Kvm];
const GUEST_AND_UMOCI: &[Need] = &[Need::Kvm, Need::Program("umoci")];

fn main() -> ExitCode {
    run_tests(vec![
        test("output_goes_to_its_stream_and_the_exit_code_is_the_process_own", GUEST, streams_and_exit_code),
        test("a_missing_program_is_127", GUEST, missing_program),
        test("a_directory_as_program_is_126", GUEST, not_executable),
        test("a_crash_is_128_plus_the_signal", GUEST, crash),
        test("standard_input_is_carried_whole_and_its_end_too", GUEST, standard_input),
        test("sigterm_reaches_the_process", GUEST, || signal_reaches_the_process(Signal::TERM, "TERM")),
        test("ctrl_c_reaches_the_process", GUEST, || signal_reaches_the_process(Signal::INT, "INT")),
        test("the_image_configuration_counts", GUEST_AND_UMOCI, image_configuration),
        test("options_override_the_image_configuration", GUEST_AND_UMOCI, options_override),
        test("a_container_looks_like_one_from_inside", GUEST, inside_view),
        test("a_read_only_root_cannot_be_written", GUEST, read_only_root),
        test("trace_names_the_phases_of_a_start", GUEST, trace),
        test("the_guest_clock_is_right", GUEST, clock),
    ])
}

fn run_args<'a>(image: &'a str, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(options);
    args.push(image);
    args.extend(command);
    args
}

fn shell(options: &[&str], script: &str) -> anyhow::Result<std::process::Output> {
    let image = busybox_reference()?;
    Installation::shared()?.output(run_args(&image, options, &["sh", "-c", script]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn streams_and_exit_code() -> anyhow::Result<()> {
    let output = shell(&[], "echo to stdout; echo to stderr >&2; exit 42")?;
    let stderr = text(&output.stderr);
    ensure!(output.stdout == b"to stdout\n", "stdout: {:?}; stderr: {stderr}", text(&output.stdout));
    ensure!(stderr.lines().any(|line| line == "to stderr"), "stderr: {stderr}");
    ensure!(output.status.code() == Some(42), "{}", output.status);
    Ok(())
}

fn missing_program() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let output = Installation::shared()?.output(run_args(&image, &[], &["no-such-program"]))?;
    ensure!(output.status.code() == Some(127), "{}: {}", output.status, text(&output.stderr));
    ensure!(text(&output.stderr).contains("no-such-program"), "{}", text(&output.stderr));
    Ok(())
}

fn not_executable() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let output = Installation::shared()?.output(run_args(&image, &[], &["/etc"]))?;
    ensure!(output.status.code() == Some(126), "{}: {}", output.status, text(&output.stderr));
    Ok(())
}

fn crash() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let output = Installation::shared()?.output(run_args(&image, &[], &["/guest/crash"]))?;
    ensure!(output.status.code() == Some(139), "{}: {}", output.status, text(&output.stderr));
    ensure!(output.stdout == b"about to crash\n");
    Ok(())
}

fn standard_input() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let mut child =
        Installation::shared()?.command(run_args(&image, &["-i"], &["cat"])).stdin(Stdio::piped()).spawn()?;
    // Not a multiple of any buffer, and no two parts alike.
    let sent: Vec<u8> =
        (0..75_001u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes()).collect();
    let mut stdin = child.stdin.take().context("no stdin")?;
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let output = finish(child, GUEST_DEADLINE)?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    let first = output.stdout.iter().zip(&sent).position(|(have, want)| have != want);
    ensure!(
        output.stdout == sent,
        "{} bytes of {} came back; first difference at {first:?}",
        output.stdout.len(),
        sent.len()
    );
    Ok(())
}

fn signal_reaches_the_process(signal: Signal, name: &str) -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let script = format!("trap 'echo got {name}; exit 7' {name}; echo ready; while true; do sleep 1; done");
    let mut child = Installation::shared()?.command(run_args(&image, &[], &["sh", "-c", &script])).spawn()?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(b"ready\n") && stdout.read(&mut byte)? == 1 {
        said.push(byte[0]);
    }
    ensure!(said == b"ready\n", "the guest said {:?}", text(&said));
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("no pid")?;
    kill_process(pid, signal)?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    let output = finish(child, GUEST_DEADLINE)?;
    ensure!(rest.contains(&format!("got {name}")), "after the signal: {rest:?}; {}", text(&output.stderr));
    ensure!(output.status.code() == Some(7), "{}", output.status);
    Ok(())
}

const CONFIGURATION: &[&str] = &[
    "--config.entrypoint=/bin/sh",
    "--config.entrypoint=-c",
    "--config.cmd=echo from cmd; echo $FRUIT; pwd; id -un; id -gn",
    "--config.env=FRUIT=pear",
    "--config.workingdir=/made/by/lighter",
    "--config.user=user",
];

fn image_configuration() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let image = format!("oci:{}:latest", oci_layout(directory.path(), CONFIGURATION)?.display());
    let stdout = Installation::shared()?.stdout(run_args(&image, &[], &[]))?;
    ensure!(stdout == "from cmd\npear\n/made/by/lighter\nuser\nuser\n", "{stdout:?}");
    Ok(())
}

fn options_override() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let image = format!("oci:{}:latest", oci_layout(directory.path(), CONFIGURATION)?.display());
    let env_file = directory.path().join("env");
    std::fs::write(&env_file, "# a comment\nFROM_FILE=yes\nFRUIT=plum\n")?;
    let env_file = env_file.display().to_string();
    let options = [
        "--entrypoint",
        "/bin/sh",
        "--env-file",
        &env_file,
        "-e",
        "FRUIT=fig",
        "-e",
        "EXTRA=a b",
        "-w",
        "/tmp",
        "-u",
        "12:50",
        "--hostname",
        "barge",
    ];
    let script = "echo $FRUIT; echo $EXTRA; echo $FROM_FILE; pwd; id -u; id -g; hostname";
    let stdout = Installation::shared()?.stdout(run_args(&image, &options, &["-c", script]))?;
    ensure!(stdout == "fig\na b\nyes\n/tmp\n12\n50\nbarge\n", "{stdout:?}");
    Ok(())
}

/// One boot for all that a script can ask.
fn inside_view() -> anyhow::Result<()> {
    let script = r#"
        check() { if eval "$2"; then echo "ok $1"; else echo "FAIL $1: $2"; fi; }
        check pid_one '[ $$ -eq 1 ]'
        check own_kernel 'uname -r | grep -q ^6.12'
        check proc 'grep -q MemTotal /proc/meminfo'
        check sys '[ -d /sys/class/net/lo ]'
        check cgroup2 'grep -q cgroup2 /proc/mounts'
        check null 'echo x > /dev/null && [ -c /dev/null ]'
        check zero '[ $(head -c 9 /dev/zero | wc -c) -eq 9 ]'
        check urandom '[ $(head -c 9 /dev/urandom | wc -c) -eq 9 ]'
        check shm 'echo x > /dev/shm/x'
        check pts '[ -c /dev/ptmx ] || [ -L /dev/ptmx ]'
        check stdin_link '[ -L /dev/stdin ] && [ -L /dev/fd ]'
        check mqueue '[ -d /dev/mqueue ]'
        check loopback 'ifconfig lo | grep -q 127.0.0.1'
        check no_other_interface '[ "$(ls /sys/class/net)" = lo ]'
        check hosts 'grep -q localhost /etc/hosts && grep -q "$(hostname)" /etc/hosts'
        check hostname_file '[ "$(cat /etc/hostname)" = "$(hostname)" ]'
        check tmp_writable 'echo x > /tmp/x'
        check root_writable 'echo x > /x && [ "$(cat /x)" = x ]'
        check rename 'mv /x /y && [ -e /y ]'
        check delete_image_file 'rm /etc/group && [ ! -e /etc/group ]'
        check home '[ "$HOME" = /root ]'
        check path 'echo $PATH | grep -q /usr/local/sbin'
        check no_sys_admin '[ $((0x$(sed -n "s/^CapEff:.//p" /proc/self/status) >> 21 & 1)) -eq 0 ]'
        check has_chown '[ $((0x$(sed -n "s/^CapEff:.//p" /proc/self/status) & 1)) -eq 1 ]'
        check umask '[ $(umask) = 0022 ]'
        check memory '[ $(sed -n "s/MemTotal: *\([0-9]*\) kB/\1/p" /proc/meminfo) -gt 200000 ]'
        check cpus '[ $(grep -c ^processor /proc/cpuinfo) -eq 2 ]'
        check no_zombies 'sleep 0; ! ps -o stat= | grep -q Z'
        check only_own_processes '[ $(ps -o pid= | wc -l) -le 6 ]'
        echo end
    "#;
    let output = shell(&["-m", "256m", "--cpus", "2"], script)?;
    let stdout = text(&output.stdout);
    let failures: Vec<_> = stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    ensure!(failures.is_empty(), "{failures:#?}");
    ensure!(stdout.ends_with("end\n") && output.status.success(), "{stdout}\n{}", text(&output.stderr));
    // What one container changed, the next one of the same image does not see.
    let output = shell(&[], "[ -e /etc/group ] && [ ! -e /y ]")?;
    ensure!(output.status.success(), "a container saw another's changes");
    Ok(())
}

fn read_only_root() -> anyhow::Result<()> {
    let output = shell(
        &["--read-only"],
        "touch /x /etc/x 2>/dev/null && exit 1; cat /etc/hostname; echo x > /dev/shm/x",
    )?;
    ensure!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    ensure!(!output.stdout.is_empty());
    Ok(())
}

fn trace() -> anyhow::Result<()> {
    let output = shell(&["--trace=json"], "echo done")?;
    let stderr = text(&output.stderr);
    let json = stderr.find('{').and_then(|start| stderr.get(start..)).context("no JSON on stderr")?;
    let trace: serde_json::Value = serde_json::from_str(json.trim()).with_context(|| json.to_owned())?;
    let phases = trace["phases"].as_array().context("no phases")?;
    ensure!(phases.len() >= 6, "{trace}");
    let sum: f64 = phases.iter().filter_map(|phase| phase["ms"].as_f64()).sum();
    let total = trace["total_ms"].as_f64().context("no total_ms")?;
    ensure!(
        total > 0.0 && (sum - total).abs() <= 0.01 * total + 1.0,
        "phases give {sum} ms of {total} ms: {trace}"
    );
    Ok(())
}

/// The guest's clocks against the host's, over some seconds of sleep.
fn clock() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let script = "echo start $(date +%s) $(cut -d' ' -f1 /proc/uptime); sleep 5; echo end $(date +%s) $(cut -d' ' -f1 /proc/uptime)";
    let mut child = Installation::shared()?.command(run_args(&image, &[], &["sh", "-c", script])).spawn()?;
    let mut stdout = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
    let mut figures = Vec::new();
    for _ in 0..2 {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut line)?;
        let host = (
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64(),
            Instant::now(),
        );
        let mut words = line.split_whitespace().skip(1);
        let wall: f64 = words.next().context("no wall clock")?.parse()?;
        let uptime: f64 = words.next().context("no uptime")?.parse()?;
        ensure!((wall - host.0).abs() < 3.0, "the guest's wall clock is {wall}, the host's {}", host.0);
        figures.push((uptime, host.1));
    }
    let output = finish(child, GUEST_DEADLINE)?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let guest = Duration::from_secs_f64(figures[1].0 - figures[0].0);
    let host = figures[1].1 - figures[0].1;
    ensure!(guest >= Duration::from_millis(4900), "sleep 5 took {guest:?} of the guest's uptime");
    ensure!(
        guest.abs_diff(host) < Duration::from_millis(1500),
        "uptime went on by {guest:?}, the host's clock by {host:?}"
    );
    Ok(())
}
