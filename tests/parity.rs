//! The same cases in a VM and in a container, and what both show must be the same; see docs/parity.md for what differs.
//! Beside that, what a container without a VM has of its own: every namespace, and nothing left of it.

use std::io::Read as _;
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::Installation;

const CONTAINER: &[Need] = &[Need::Root, Need::Program("runc")];
const BOTH: &[Need] = &[Need::Kvm, Need::Root, Need::Program("runc")];

fn main() -> ExitCode {
    run_tests(vec![
        test("a_vm_and_a_container_show_the_same", BOTH, same),
        test("a_container_has_every_namespace_and_is_confined", CONTAINER, confined),
        test("a_container_holds_its_limits", CONTAINER, limits),
        test("exec_logs_pause_stop_and_start_serve_all", CONTAINER, life),
        test("a_flood_of_output_is_whole_for_slow_readers_and_in_the_log", CONTAINER, flood),
        test("volumes_and_directories_of_the_host_are_there_with_their_owners", CONTAINER, volumes),
        test("files_are_copied_compared_exported_and_committed_with_their_owners", CONTAINER, files),
        test("containers_find_each_other_by_name", CONTAINER, names),
        test("nothing_is_left_after_a_killed_keeper", CONTAINER, killed),
        test("what_an_isolation_cannot_do_is_refused", &[Need::Root], refused),
    ])
}

/// One case: options, and the script that `sh -c` runs.
struct Case {
    name: &'static str,
    options: &'static [&'static str],
    script: &'static str,
}

const fn case(name: &'static str, options: &'static [&'static str], script: &'static str) -> Case {
    Case { name, options, script }
}

const CASES: &[Case] = &[
    case(
        "root",
        &["-e", "A=b c", "--hostname", "barge", "--ulimit", "nofile=700:800", "--ulimit", "core=0"],
        "env | sort; id; pwd; umask; hostname; cat /etc/hostname; ulimit -n; ulimit -Hn; ulimit -c; echo $$ $PPID
         grep -E '^(Cap|NoNewPrivs|Groups|SigBlk)' /proc/self/status; tail -n +1 /etc/passwd
         stat -c '%n %a %u %g %F' / /tmp /etc/hosts /dev/shm; stat -c '%n %a %F' /dev/null /dev/tty /dev/zero /dev/pts; ls /dev | grep -v sysgenid
         for m in / /proc /sys /dev /dev/pts /dev/shm /dev/mqueue /sys/fs/cgroup /etc/hosts; do
            awk -v m=$m '$5 == m {found = 1} END {print m, found}' /proc/self/mountinfo; done
         ls -l /proc/self/fd | wc -l; touch /sys/x 2>/dev/null || echo sys is closed
         echo written > /new; cat /new; mkdir -p /tmp/a/b; rm /etc/group; ls /etc; exit 7",
    ),
    case(
        "a user",
        &["-u", "user:staff", "--group-add", "77", "-w", "/made/here", "--security-opt", "no-new-privileges"],
        "id -u; id -g; id -G; pwd; stat -c '%a %u %g' /made/here; echo $HOME; grep -E '^(Cap|NoNewPrivs)' /proc/self/status
         touch /x 2>/dev/null || echo root is closed; echo mine > /tmp/mine; stat -c '%u %g' /tmp/mine",
    ),
    case(
        "read-only without capabilities",
        &["--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN"],
        "touch /x 2>/dev/null || echo closed; grep ^Cap /proc/self/status; chown 5 /etc/hosts; stat -c %u /etc/hosts
         echo over > /dev/shm/x; cat /dev/shm/x",
    ),
    case(
        "signals",
        &[],
        "trap 'echo term; exit 5' TERM; (sleep 0.2; kill -TERM 1) & while :; do sleep 0.05; done",
    ),
    case("a killed child", &[], "sh -c 'kill -SEGV $$'; exit $?"),
    case("streams", &["-i"], "cat; echo to stderr >&2; head -c 200000 /dev/zero | wc -c; exit 0"),
];

fn run(isolation: &str, case: &Case) -> anyhow::Result<Output> {
    use std::io::Write as _;
    let image = busybox_reference()?;
    let mut args = vec!["run", "--rm", "--network", "none", "--isolation", isolation];
    args.extend(case.options);
    args.extend([image.as_str(), "sh", "-c", case.script]);
    let mut command = Installation::shared()?.command(args);
    command.env("LC_ALL", "C").stdin(std::process::Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no stdin")?.write_all(b"through stdin\n")?;
    lighter_tests::lighter::finish(child, lighter_tests::lighter::GUEST_DEADLINE)
}

fn same() -> anyhow::Result<()> {
    let mut differences = Vec::new();
    for case in CASES {
        let [vm, container] = [run("vm", case)?, run("container", case)?];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if vm.status.code() != container.status.code() {
            differences.push(format!(
                "{}: exit {:?} and {:?}",
                case.name,
                vm.status.code(),
                container.status.code()
            ));
        }
        for (stream, vm, container) in
            [("stdout", &vm.stdout, &container.stdout), ("stderr", &vm.stderr, &container.stderr)]
        {
            let (vm, container) = (text(vm), text(container));
            for (vm, container) in vm.lines().zip(container.lines()).filter(|(vm, container)| vm != container)
            {
                // Without --hostname it is the container's ID.
                if !vm.starts_with("HOSTNAME=") {
                    differences.push(format!("{} {stream}: vm {vm:?}, container {container:?}", case.name));
                }
            }
            if vm.lines().count() != container.lines().count() {
                differences.push(format!("{} {stream}: vm\n{vm}\ncontainer\n{container}", case.name));
            }
        }
        ensure!(!vm.stdout.is_empty() || case.name == "a killed child", "{}: nothing was shown", case.name);
    }
    // Commands that cannot be run.
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126), ("/no/such", 127)] {
        let image = busybox_reference()?;
        for isolation in ["vm", "container", "process"] {
            let args = ["run", "--rm", "--isolation", isolation, &image, program];
            let found = Installation::shared()?.output(args)?.status.code();
            if found != Some(code) {
                differences.push(format!("{program} in {isolation}: exit {found:?}, not {code}"));
            }
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// `lighter run --rm --isolation ISOLATION … sh -c SCRIPT`, which must succeed.
fn shell(isolation: &str, options: &[&str], script: &str) -> anyhow::Result<String> {
    let image = busybox_reference()?;
    let mut args = vec!["run", "--rm", "--isolation", isolation];
    args.extend(options);
    args.extend([image.as_str(), "sh", "-c", script]);
    Installation::shared()?.stdout(args)
}

fn confined() -> anyhow::Result<()> {
    let script = "for n in mnt pid net ipc uts user cgroup; do readlink /proc/self/ns/$n; done; grep Seccomp: /proc/self/status
        cat /proc/self/uid_map; wc -c < /proc/kcore; wc -c < /proc/keys; echo x > /proc/sys/kernel/hostname || echo held
        mount -t tmpfs x /tmp 2>/dev/null || echo held; mknod /tmp/d b 7 0 2>/dev/null || echo held; dmesg >/dev/null 2>&1 || echo held";
    let inside = shell("container", &["--network", "none"], script)?;
    for name in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string();
        ensure!(!inside.contains(&own), "the {name} namespace is the host's: {inside}");
    }
    ensure!(inside.contains("Seccomp:\t2"), "{inside}");
    ensure!(inside.matches("held").count() == 4, "{inside}");
    let map = inside.lines().find(|line| line.trim().starts_with("0 ")).context("no map of user IDs")?;
    ensure!(
        map.split_whitespace().nth(1).and_then(|id| id.parse().ok()).is_some_and(|id: u32| id >= 524_288),
        "{map}"
    );
    // The probe itself can fail: without namespaces all of it is the host's.
    let bare = shell(
        "process",
        &[],
        "readlink /proc/self/ns/pid; readlink /proc/self/ns/net; grep Seccomp: /proc/self/status",
    )?;
    for name in ["pid", "net"] {
        ensure!(
            bare.contains(&std::fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string()),
            "{bare}"
        );
    }
    Ok(())
}

fn limits() -> anyhow::Result<()> {
    // Memory that is too much is refused by the kernel, and only the container's process dies.
    let script = "head -c 100000000 /dev/zero | tail > /dev/null; echo $?";
    let held = shell("container", &["-m", "32m", "--network", "none"], script)?;
    ensure!(held.trim() != "0", "100 MB fitted into 32: {held}");
    ensure!(
        shell("container", &["--network", "none"], script)?.trim() == "0",
        "without a limit it does not fit either"
    );
    // Processes and /dev/shm, as a VM's guest holds them.
    let options = ["--network", "none", "--pids-limit", "8", "--shm-size", "1m"];
    let script =
        "df -k /dev/shm | tail -1; (for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done) 2>&1; echo $?";
    let seen = shell("container", &options, script)?;
    ensure!(seen.contains("fork") && seen.contains("1024"), "{seen}");
    let spin = "t=$(cut -d' ' -f1 /proc/uptime); timeout 1 sh -c 'while :; do :; done'; cat /proc/self/status | grep -c Name";
    ensure!(shell("container", &["--cpus", "0.2", "--network", "none"], spin).is_ok(), "a quota was refused");
    Ok(())
}

/// `lighter run -d --name NAME --isolation ISOLATION … sh -c SCRIPT`; its ID.
fn start(
    installation: &Installation,
    isolation: &str,
    name: &str,
    options: &[&str],
    script: &str,
) -> anyhow::Result<String> {
    let image = busybox_reference()?;
    let mut args = vec!["run", "-d", "--name", name, "--isolation", isolation];
    args.extend(options);
    args.extend([image.as_str(), "sh", "-c", script]);
    installation.stdout(args)
}

fn life() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    for isolation in ["container", "process"] {
        let script = "trap 'echo stopped; exit 3' TERM; echo started; while :; do sleep 0.05; done";
        start(&installation, isolation, "box", &[], script)?;
        ensure!(installation.stdout(["exec", "box", "echo", "inside"])? == "inside\n");
        let failed = installation.output(["exec", "box", "sh", "-c", "exit 9"])?;
        ensure!(failed.status.code() == Some(9), "{failed:?}");
        ensure!(installation.stdout(["ps"])?.contains("box"));
        ensure!(installation.stdout(["stats", "--no-stream", "box"])?.contains("box"));
        installation.stdout(["pause", "box"])?;
        ensure!(installation.stdout(["ps"])?.contains("Paused"));
        installation.stdout(["unpause", "box"])?;
        let began = Instant::now();
        installation.stdout(["stop", "box"])?;
        ensure!(began.elapsed() < Duration::from_secs(8), "it was not asked to end but killed");
        let log = installation.stdout(["logs", "box"])?;
        ensure!(log == "started\nstopped\n", "{isolation}: {log:?}");
        ensure!(installation.stdout(["ps", "-a"])?.contains("Exited (3)"));
        // What it wrote is there when it starts again.
        installation.stdout(["start", "box"])?;
        installation.stdout(["exec", "box", "sh", "-c", "echo kept > /kept"])?;
        installation.stdout(["restart", "box"])?;
        ensure!(installation.stdout(["exec", "box", "cat", "/kept"])? == "kept\n");
        installation.stdout(["rm", "-f", "box"])?;
    }
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

/// A file that the container's root makes belongs to root on the host, and the other way round.
/// A process that writes as fast as the host lets it, a caller that is slow to read, and who follows the log.
fn flood() -> anyhow::Result<()> {
    const LAST: &str = "10000000";
    let lighter = Installation::new()?;
    let expected = Command::new("seq").arg(LAST).output()?.stdout;
    let first = ["run", "--name", "flood", "--isolation", "container", "--network", "none"];
    let image = busybox_reference()?;
    let command = first.into_iter().chain(["--log-opt", "max-size=1g", &image, "seq", LAST]);
    let begin = Instant::now();
    let mut caller = lighter.command(command).spawn()?;
    let mut stdout = caller.stdout.take().context("no stdout")?;
    let slow = std::thread::spawn(move || -> anyhow::Result<Vec<u8>> {
        let (mut read, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            match stdout.read(&mut buffer)? {
                0 => return Ok(read),
                count => read.extend(buffer.iter().take(count)),
            }
            if read.len() < 4 << 20 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    while lighter.output(["logs", "flood"])?.stdout.is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let followed = lighter.stdout(["logs", "-f", "flood"])?;
    let read = slow.join().ok().context("the reader panicked")??;
    ensure!(caller.wait()?.success());
    println!("{} MB in {:?}", expected.len() / 1_000_000, begin.elapsed());
    ensure!(read == expected, "the caller read {} of {} bytes", read.len(), expected.len());
    ensure!(followed.as_bytes() == expected, "{} of {} bytes followed", followed.len(), expected.len());
    ensure!(lighter.stdout(["logs", "flood"])?.as_bytes() == expected, "the log lacks something");
    lighter.stdout(["rm", "flood"]).map(drop)
}

fn volumes() -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("ours"), "ours")?;
    for isolation in ["container", "process"] {
        let share = format!("{}:/deep/share", directory.path().display());
        let read_only = format!("{}:/closed:ro", directory.path().display());
        let options = ["-v", &share, "-v", &read_only, "--tmpfs", "/memory"];
        let script = "cat /deep/share/ours; stat -c ' %u' /deep/share/ours; echo theirs > /deep/share/theirs
            touch /closed/x 2>/dev/null || echo closed; grep -c ' /memory ' /proc/self/mountinfo";
        let seen = shell(isolation, &options, script)?;
        ensure!(seen == "ours 0\nclosed\n1\n", "{isolation}: {seen:?}");
        let theirs = directory.path().join("theirs");
        ensure!(
            std::fs::read_to_string(&theirs)? == "theirs\n" && theirs.metadata()?.uid() == 0,
            "{isolation}"
        );
        std::fs::remove_file(theirs)?;
    }
    Ok(())
}

/// `diff`, `cp`, `export` and `commit` of one that runs and of the same one stopped.
fn files() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let base = tempfile::tempdir()?;
    let (inward, outward, tar) = (base.path().join("in"), base.path().join("out"), base.path().join("tar"));
    std::fs::write(&inward, "from the host")?;
    for isolation in ["container", "process"] {
        let script =
            "mkdir /made; echo made > /made/file; chown 7:8 /made/file; rm /etc/group; ln -s / /made/out
            echo ready; while :; do sleep 0.1; done";
        start(&installation, isolation, "box", &[], script)?;
        let end = Instant::now() + Duration::from_secs(10);
        while !installation.stdout(["logs", "box"])?.contains("ready") && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let inside = |path: &str| format!("box:{path}");
        for state in ["running", "stopped"] {
            let changes = installation.stdout(["diff", "box"])?;
            for line in ["D /etc/group", "A /made/file", "A /made/out"] {
                ensure!(changes.lines().any(|seen| seen == line), "{isolation}, {state}: {changes}");
            }
            ensure!(!changes.contains("/proc"), "{isolation}, {state}: {changes}");
            let copied = inside(&format!("/made/{state}"));
            installation.stdout(["cp", inward.to_str().context("a path")?, &copied])?;
            let _ = std::fs::remove_file(&outward);
            installation.stdout(["cp", &inside("/made/file"), outward.to_str().context("a path")?])?;
            ensure!(std::fs::read_to_string(&outward)? == "made\n", "{isolation}, {state}");
            // A link leads within the container, whoever follows it.
            let hosts = inside(&format!("/made/out{}", inward.display()));
            let led = installation.output(["cp", "-L", &hosts, outward.to_str().context("a path")?])?;
            ensure!(!led.status.success(), "{isolation}, {state}: a link led to the host");
            installation.stdout(["export", "-o", tar.to_str().context("a path")?, "box"])?;
            let listing = Command::new("tar").arg("tvnf").arg(&tar).output()?;
            let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
            for (name, owner) in [("./made/file", " 7/8 "), ("./bin/busybox", " 0/0 ")] {
                let line = listing.lines().find(|line| line.ends_with(name));
                ensure!(
                    line.is_some_and(|line| line.contains(owner)),
                    "{isolation}, {state}: {name}\n{listing}"
                );
            }
            if state == "running" {
                installation.stdout(["commit", "box", &format!("made-{isolation}")])?;
                let seen = installation.stdout([
                    "exec",
                    "box",
                    "stat",
                    "-c",
                    "%u %g",
                    "/made/running",
                    "/made/file",
                ])?;
                ensure!(seen == "0 0\n7 8\n", "{isolation}: {seen}");
                installation.stdout(["stop", "-t", "0", "box"])?;
            }
        }
        installation.stdout(["rm", "-f", "box"])?;
        let image = format!("made-{isolation}");
        let script = "stat -c '%u %g' /made/file; cat /made/running; test -e /etc/group || echo gone";
        let seen =
            installation.stdout(["run", "--rm", "--isolation", "container", &image, "sh", "-c", script])?;
        ensure!(seen == "7 8\nfrom the hostgone\n", "{isolation}: {seen:?}");
    }
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

/// By the name of another container on the same network, asked of lighter at 127.0.0.11.
fn names() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    installation.stdout(["network", "create", "parity"])?;
    let options = ["--network", "parity", "--network-alias", "shop"];
    start(&installation, "container", "web", &options, "while :; do echo answer | nc -l -p 7000; done")?;
    let script =
        "cat /etc/resolv.conf; for name in web shop; do nc -w 10 $name 7000 < /dev/null; sleep 0.2; done
        nslookup nobody.invalid 127.0.0.11 > /dev/null 2>&1 || echo nobody";
    let image = busybox_reference()?;
    let args =
        ["run", "--rm", "--isolation", "container", "--network", "parity", "--dns", "127.0.0.1", &image];
    let seen = installation.stdout(args.into_iter().chain(["sh", "-c", script]))?;
    ensure!(seen.contains("nameserver 127.0.0.11") && seen.ends_with("answer\nanswer\nnobody\n"), "{seen}");
    installation.stdout(["rm", "-f", "web"])?;
    installation.stdout(["network", "rm", "parity"])?;
    Ok(())
}

fn killed() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    for isolation in ["container", "process"] {
        // A number that nothing else sleeps for.
        let seconds = format!("{}7", 1_000_000 + std::process::id());
        let script = format!("sleep {seconds} & sleep {seconds}");
        let id = start(&installation, isolation, "box", &[], &script)?;
        let sleeping = || -> anyhow::Result<usize> {
            let list = Command::new("ps").args(["ax", "-o", "args"]).output()?;
            Ok(String::from_utf8_lossy(&list.stdout)
                .lines()
                .filter(|line| *line == format!("sleep {seconds}"))
                .count())
        };
        let end = Instant::now() + Duration::from_secs(5);
        while sleeping()? < 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(sleeping()? == 2, "{isolation}: {} sleep", sleeping()?);
        let state = std::fs::read(installation.root().join("containers").join(id.trim()).join("state.json"))?;
        let keeper =
            serde_json::from_slice::<serde_json::Value>(&state)?["keeper"].as_i64().context("no keeper")?;
        let keeper = rustix::process::Pid::from_raw(i32::try_from(keeper)?).context("no keeper")?;
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL)?;
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            // The next command sweeps.
            let list = installation.stdout(["ps", "-a"])?;
            if list.contains("Exited (137)") && sleeping()? == 0 {
                break;
            }
            ensure!(Instant::now() < end, "{isolation}: {} still sleep\n{list}", sleeping()?);
        }
        installation.stdout(["rm", "box"])?;
        let left =
            Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "3", "-name", id.trim()]).output()?;
        ensure!(left.stdout.is_empty(), "{isolation}: {}", String::from_utf8_lossy(&left.stdout));
    }
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

fn refused() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let cases: &[(&str, &[&str], &str)] = &[
        ("process", &["-m", "64m"], "--memory"),
        ("process", &["--network", "none"], "--network"),
        ("process", &["-p", "80:80"], "--publish"),
        ("process", &["--cap-drop", "ALL"], "--cap-drop"),
        ("container", &["--kernel", "/k"], "--kernel"),
        ("container", &["--network", "user"], "--network user"),
        ("container", &["--network-rate", "1mbit"], "--network-rate"),
        ("process", &["--pids-limit", "5"], "--pids-limit"),
    ];
    for (isolation, options, named) in cases {
        let mut args = vec!["run", "--rm", "--isolation", isolation];
        args.extend(*options);
        args.extend([image.as_str(), "true"]);
        let output = Installation::shared()?.output(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(125) && stderr.contains(named), "{options:?}: {stderr}");
    }
    // Without the runtime nothing else is taken in its place.
    let mut command =
        Installation::shared()?.command(["run", "--rm", "--isolation", "container", &image, "true"]);
    let output = lighter_tests::lighter::finish(
        command.env("LIGHTER_RUNC", "/no/such/runc").spawn()?,
        Duration::from_secs(30),
    )?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && stderr.contains("apt install runc"), "{stderr}");
    Ok(())
}
