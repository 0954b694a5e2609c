//! What containers see of their host, and what outlives them: directories, single files, volumes, memory.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, oci_layout};
use lighter_tests::lighter::Installation;

const GUEST: &[Need] = &[Need::Kvm, Need::Root, Need::Program("umoci")];

fn main() -> ExitCode {
    run_tests(vec![
        test("a_share_is_the_hosts_files_and_nothing_beside_them", GUEST, shares),
        test("volumes_outlive_their_containers_and_only_those_without_a_name_go_with_them", GUEST, volumes),
        test("a_volume_that_is_a_disk_is_one_containers_at_a_time", GUEST, disk),
        test("a_killed_file_server_is_an_error_in_the_guest_and_an_event_on_the_host", GUEST, killed),
        test("secrets_are_files_in_the_guests_memory_and_nowhere_on_the_host", GUEST, secrets),
        test("what_cannot_be_mounted_is_refused_with_its_reason", GUEST, refused),
    ])
}

/// The busybox image with options of `umoci config`: one template serves them all.
fn image(config: &[&str]) -> anyhow::Result<(tempfile::TempDir, String)> {
    let directory = tempfile::tempdir()?;
    let layout = oci_layout(directory.path(), config)?;
    Ok((directory, format!("oci:{}:latest", layout.display())))
}

/// `lighter run` of the busybox image in the machine that all tests here share.
fn run(lighter: &Installation, options: &[&str], command: &[&str]) -> anyhow::Result<String> {
    let (_layout, image) = image(&[])?;
    let first = ["run", "--network", "none", "-m", "128m"];
    lighter.stdout(first.iter().chain(options).chain(&[image.as_str()]).chain(command))
}

struct Host(tempfile::TempDir);

impl Host {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `-v` of something of this host.
    fn mount(&self, name: &str, target: &str) -> String {
        format!("{}:{target}", self.path(name).display())
    }
}

fn host() -> anyhow::Result<Host> {
    let host = Host(tempfile::tempdir()?);
    std::fs::create_dir_all(host.path("share/inner"))?;
    std::fs::write(host.path("share/file"), "of the host\n")?;
    std::fs::write(host.path("share/inner/deep"), "deep\n")?;
    std::fs::write(host.path("single"), "alone\n")?;
    std::fs::write(host.path("sibling"), "secret\n")?;
    symlink(host.path("sibling"), host.path("share/out"))?;
    symlink("../sibling", host.path("share/up"))?;
    Ok(host)
}

fn shares() -> anyhow::Result<()> {
    let lighter = Installation::new()?;
    let host = host()?;
    let script = r#"
        cat /s/file /s/inner/deep /conf/one /ro/file
        echo new > /s/new; chown 1000:50 /s/new; chmod 4751 /s/new; mv /s/new /s/inner/new; ln /s/inner/new /s/hard
        su user -c 'echo mine > /s/all/mine'; stat -c '%u:%g %a %h' /s/inner/new; stat -c '%u' /s/all/mine
        su user -c 'echo no > /s/file' 2>/dev/null || echo kept
        for path in /ro/x /ro/inner/x /conf/one; do (echo x > $path) 2>&1 | grep -o 'Read-only.*'; done
        mount -o remount,rw /ro && (echo x > /ro/x) 2>&1 | grep -o 'Read-only.*'
        cat /s/out 2>&1 | grep -o 'No such.*'; cat /s/up 2>&1 | grep -o 'No such.*'; readlink /s/up
        ls /conf; mount -t virtiofs lighter /mnt; ls /mnt; cat /mnt/3; ls -d /mnt/../mnt/../sibling 2>/dev/null
        (echo x > /mnt/x) 2>&1 | grep -o 'Read-only.*'; mknod /s/dev b 7 0 2>&1 | grep -o 'not permitted'
        dd if=/dev/zero of=/t/f bs=1k count=2048 2>&1 | grep -o 'No space.*'; stat -c %a /t; grep -c 'noexec.*size=1024k' /proc/mounts
        echo over > /s/inner/over/x; ls /s/inner/over; exec /guest/shared_files /s
    "#;
    std::fs::create_dir(host.path("share/all"))?;
    std::fs::set_permissions(host.path("share/all"), std::fs::Permissions::from_mode(0o777))?;
    let (read_only, single) = (host.mount("share", "/ro:ro"), host.mount("single", "/conf/one:ro"));
    let options = [
        "--rm",
        "--privileged",
        "--tmpfs",
        "/s/inner/over",
        "-v",
        &host.mount("share", "/s"),
        "-v",
        &read_only,
        "--mount",
        "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1750",
        "-v",
        "named:/n/a/m/e/d",
        "-v",
        &single,
        "--tmpfs",
        "/mnt",
        "--read-only",
    ];
    let said = run(&lighter, &options, &["sh", "-c", script])?;
    let wanted = [
        "of the host\ndeep\nalone\nof the host\n1000:50 4751 2\n1000\nkept\n",
        &"Read-only file system\n".repeat(4),
        "No such file or directory\nNo such file or directory\n../sibling\n",
        "one\n0\n1\n2\n3\nalone\nRead-only file system\nnot permitted\n",
        "No space left on device\n1750\n1\nx\nlocks and mappings hold\n",
    ];
    let wanted = wanted.concat();
    ensure!(said == wanted, "{said}");
    let new = host.path("share/inner/new").metadata()?;
    ensure!((new.uid(), new.gid(), new.mode() & 0o7777, new.nlink()) == (1000, 50, 0o4751, 2), "{new:?}");
    let mapped = std::fs::read(host.path("share/mapped"))?;
    ensure!(
        (mapped[0], mapped[4096], mapped[8192]) == (b'0', b'1', b'2'),
        "the mapping did not reach the host"
    );
    ensure!(mapped[1] == b'z', "what was not synced is lost");
    ensure!(std::fs::read_to_string(host.path("share/file"))? == "of the host\n");
    ensure!(std::fs::read_to_string(host.path("sibling"))? == "secret\n");
    lighter.stdout(["volume", "rm", "named"])?;
    ensure!(lighter.leftovers()?.is_empty(), "left: {:?}", lighter.leftovers()?);
    Ok(())
}

fn volumes() -> anyhow::Result<()> {
    let lighter = Installation::new()?;
    let (_layout, image) = image(&["--config.volume=/root", "--config.volume=/etc"])?;
    let run = |options: &[&str], script: &str| {
        let first = ["run", "--network", "none", "-m", "128m"];
        lighter.stdout(first.iter().chain(options).chain(&[image.as_str(), "sh", "-c", script]))
    };
    ensure!(lighter.stdout(["volume", "create", "--label", "tier=1", "data"])? == "data\n");
    let said = run(&["--rm", "-v", "data:/data"], "echo kept > /data/file; echo gone > /root/file; ls /etc")?;
    ensure!(said.contains("passwd\n"), "the image's files are not in its volume: {said}");
    ensure!(lighter.stdout(["volume", "ls", "-q"])? == "data\n", "an anonymous volume is left");
    // Another container sees it, has volumes of its own for the image's, and keeps all of them.
    let options = ["--name", "holder", "--mount", "source=data,target=/x,readonly"];
    ensure!(run(&options, "cat /x/file; echo mine > /root/own")? == "kept\n");
    let busy = lighter.output(["volume", "rm", "data"])?;
    let text = String::from_utf8_lossy(&busy.stderr).into_owned();
    ensure!(busy.status.code() == Some(1) && text.contains("in use by holder"), "{text}");
    ensure!(lighter.stdout(["volume", "ls", "-q"])?.lines().count() == 3);
    ensure!(lighter.stdout(["volume", "ls", "-q", "--filter", "label=tier"])? == "data\n");
    let shown: serde_json::Value = serde_json::from_str(&lighter.stdout(["volume", "inspect", "data"])?)?;
    let place = shown["volumes"][0]["mountpoint"].as_str().context("no mountpoint")?;
    ensure!(std::fs::read_to_string(Path::new(place).join("file"))? == "kept\n");
    ensure!(shown["volumes"][0]["containers"] == serde_json::json!(["holder"]), "{shown}");
    ensure!(lighter.stdout(["start", "-a", "holder"])? == "kept\n");
    lighter.stdout(["rm", "-v", "holder"])?;
    ensure!(lighter.stdout(["volume", "ls", "-q"])? == "data\n");
    ensure!(lighter.stdout(["volume", "prune", "-f"])?.is_empty());
    ensure!(lighter.stdout(["volume", "prune", "-f", "--all"])? == "data\n");
    Ok(())
}

fn disk() -> anyhow::Result<()> {
    let lighter = Installation::new()?;
    let create = ["volume", "create", "--opt", "type=disk", "--opt", "size=64m", "disk"];
    ensure!(lighter.stdout(create)? == "disk\n");
    let shown: serde_json::Value = serde_json::from_str(&lighter.stdout(["volume", "inspect", "disk"])?)?;
    ensure!(shown["volumes"][0]["type"] == "disk" && shown["volumes"][0]["size"] == 64 << 20, "{shown}");
    // ENOSPC at its own size, not at the layer's; fsync as on any disk.
    let fill = "fallocate -l 80m /d/big 2>&1 | grep -o 'No space left' ; rm -f /d/big; \
                echo kept > /d/file; sync; mkfifo /tmp/hold; cat /tmp/hold";
    // The image and machine of most other tests, so that there is a template.
    let image = busybox_reference()?;
    let run = ["run", "-d", "--name", "one", "--network", "none", "-v", "disk:/d"];
    lighter.stdout(run.iter().chain(&[image.as_str(), "sh", "-c", fill]))?;
    let busy = ["run", "--rm", "--network", "none", "-v", "disk:/d", &image, "true"];
    let busy = lighter.output(busy)?;
    let text = String::from_utf8_lossy(&busy.stderr).into_owned();
    ensure!(busy.status.code() == Some(125) && text.contains("one container at a time"), "{text}");
    let there = ["exec", "one", "sh", "-c", "until cat /d/file 2> /dev/null; do sleep 1; done"];
    ensure!(lighter.stdout(there)? == "kept\n");
    ensure!(lighter.stdout(["logs", "one"])? == "No space left\n");
    let refused = lighter.output(["snapshot", "create", "one"])?;
    ensure!(!refused.status.success(), "a snapshot of a machine whose disk goes on");
    lighter.stdout(["rm", "-f", "one"])?;
    // The machine was killed: the journal brings the next one what was synced.
    let next = run_disk(&lighter, &image, "disk:/d", "cat /d/file; ls /d")?;
    ensure!(next == "kept\nfile\n", "{next}");
    let read =
        run_disk(&lighter, &image, "disk:/d:ro", "cat /d/file; touch /d/new 2>&1 | grep -o Read-only")?;
    ensure!(read == "kept\nRead-only\n", "{read}");
    for (bad, why) in [("type=tape", "type=disk"), ("size=1g", "add --opt type=disk"), ("size=x", "512m")] {
        let output = lighter.output(["volume", "create", "--opt", bad, "other"])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() != Some(0) && text.contains(why), "{bad}: {text}");
    }
    ensure!(lighter.stdout(["volume", "rm", "disk"])? == "disk\n");
    Ok(())
}

fn run_disk(lighter: &Installation, image: &str, volume: &str, script: &str) -> anyhow::Result<String> {
    lighter.stdout([
        "run",
        "--rm",
        "--network",
        "none",
        "-m",
        "128m",
        "-v",
        volume,
        image,
        "sh",
        "-c",
        script,
    ])
}

/// The process that serves the shares of the only running container.
fn file_server(lighter: &Installation) -> anyhow::Result<i32> {
    let run = lighter.run_directory();
    for entry in std::fs::read_dir("/proc")? {
        let directory = entry?.path();
        let Ok(command) = std::fs::read(directory.join("cmdline")) else { continue };
        let of_keeper = || -> Option<bool> {
            let status = std::fs::read_to_string(directory.join("status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim();
            let environment = std::fs::read(format!("/proc/{parent}/environ")).ok()?;
            Some(String::from_utf8_lossy(&environment).contains(run.to_str()?))
        };
        if command.split(|byte| *byte == 0).nth(1) == Some(b"share") && of_keeper() == Some(true) {
            return Ok(directory.file_name().and_then(|name| name.to_str()).context("no name")?.parse()?);
        }
    }
    anyhow::bail!("no file server runs")
}

/// Ends what a failed test leaves.
struct Guest<'a>(&'a Installation);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let _ = self.0.output(["rm", "-f", "box"]);
    }
}

fn killed() -> anyhow::Result<()> {
    let lighter = Installation::new()?;
    let _box = Guest(&lighter);
    let host = host()?;
    let share = host.mount("share", "/s");
    run(&lighter, &["-d", "--name", "box", "-v", &share], &["sh", "-c", "sleep 100000"])?;
    let guest = |script: &str| lighter.stdout(["exec", "box", "sh", "-c", script]);

    // What others do with a container's files knows its mounts.
    guest("echo 1 > /s/by-guest; echo 2 > /of-layer")?;
    let changes = lighter.stdout(["diff", "box"])?;
    ensure!(changes.contains("A /of-layer") && !changes.contains("by-guest"), "{changes}");
    lighter.stdout(["commit", "box", "mine:1"])?;
    let made = ["run", "--rm", "--network", "none", "-m", "128m", "mine:1"];
    let seen =
        lighter.stdout(made.iter().chain(&["sh", "-c", "cat /of-layer; ls -A /s 2>/dev/null || true"]))?;
    ensure!(seen == "2\n", "a commit has what is in a mount: {seen}");
    let copied = host.path("copied");
    lighter.stdout(["cp", "box:/s/by-guest", copied.to_str().context("no text")?])?;
    ensure!(std::fs::read_to_string(&copied)? == "1\n");
    lighter.stdout(["cp", copied.to_str().context("no text")?, "box:/s/inner/back"])?;
    ensure!(std::fs::read_to_string(host.path("share/inner/back"))? == "1\n");
    for verb in [&["snapshot", "create", "box", "one"][..], &["clone", "box"]] {
        let output = lighter.output(verb)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(125) && text.contains("directories of the host"),
            "{verb:?}: {text}"
        );
    }

    let server = file_server(&lighter)?;
    let caged = std::fs::read_to_string(format!("/proc/{server}/status"))?;
    ensure!(caged.contains("NoNewPrivs:\t1") && caged.contains("Seccomp:\t2"), "{caged}");
    ensure!(
        std::fs::read_link(format!("/proc/{server}/ns/mnt"))? != std::fs::read_link("/proc/self/ns/mnt")?
    );
    let process = rustix::process::Pid::from_raw(server).context("no process")?;
    rustix::process::kill_process(process, rustix::process::Signal::KILL)?;
    let said = guest("cat /s/file 2>&1; echo x > /s/new 2>&1; echo alive")?;
    ensure!(said.contains("not connected") && said.ends_with("alive\n"), "{said}");
    let end = Instant::now() + Duration::from_secs(10);
    while !lighter.stdout(["events", "--since", "1h", "--until", "0s"])?.contains("shares-lost") {
        ensure!(Instant::now() < end, "no event");
        std::thread::sleep(Duration::from_millis(100));
    }
    // A restart brings a new server, which dies with its keeper.
    lighter.stdout(["restart", "-t", "0", "box"])?;
    ensure!(guest("cat /s/file")? == "of the host\n");
    let server = file_server(&lighter)?;
    let shown: serde_json::Value = serde_json::from_str(&lighter.stdout(["inspect", "box"])?)?;
    ensure!(shown[0]["Mounts"][0]["Destination"] == "/s", "{shown}");
    let keeper = shown[0]["State"]["KeeperPid"].as_i64().and_then(|pid| pid.try_into().ok());
    let keeper = keeper.and_then(rustix::process::Pid::from_raw).context("no keeper")?;
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL)?;
    let end = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{server}/ns"))
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        ensure!(Instant::now() < end, "the file server outlives its keeper");
        std::thread::sleep(Duration::from_millis(20));
    }
    lighter.stdout(["rm", "-f", "box"])?;
    ensure!(lighter.leftovers()?.is_empty(), "left: {:?}", lighter.leftovers()?);
    Ok(())
}

/// Also after a start anew, and whoever the process runs as.
fn secrets() -> anyhow::Result<()> {
    const SECRET: &str = "swordfish-4711-do-not-tell";
    let lighter = Installation::new()?;
    let host = host()?;
    std::fs::write(host.path("key"), SECRET)?;
    let (_layout, image) = image(&[])?;
    let option = format!("key={}", host.path("key").display());
    let script = "cat /run/secrets/key; echo; stat -c %a /run/secrets/key; grep -o '/run/secrets tmpfs ro' /proc/mounts; \
                  env | grep -c sword; sleep 1000";
    let create =
        ["run", "-d", "--name", "keeps", "--network", "none", "-m", "128m", "-u", "1000", "--secret"];
    lighter.stdout(create.iter().chain(&[option.as_str(), &image, "sh", "-c", script]))?;
    let expected = format!("{SECRET}\n444\n/run/secrets tmpfs ro\n0\n");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let said = lighter.stdout(["logs", "keeps"])?;
        if said == expected {
            break;
        }
        ensure!(Instant::now() < end, "the container said {said:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let shown = lighter.stdout(["inspect", "keeps"])?;
    ensure!(shown.contains("/run/secrets") && !shown.contains(SECRET), "{shown}");
    // The log has what the container itself said of it, so it is the only file that may.
    let mut holders = holders(&lighter.root(), SECRET)?;
    holders.extend(self::holders(&lighter.run_directory(), SECRET)?);
    holders.retain(|path| !path.to_string_lossy().contains("log"));
    ensure!(holders.is_empty(), "{holders:?}");
    for process in std::fs::read_dir("/proc")? {
        for file in ["cmdline", "environ"] {
            let text =
                std::fs::read(process.as_ref().map_or_else(|_| file.into(), |entry| entry.path().join(file)));
            let found = text.is_ok_and(|text| String::from_utf8_lossy(&text).contains(SECRET));
            ensure!(!found, "{process:?} has it in its {file}");
        }
    }
    let copied = lighter.output(["snapshot", "create", "keeps", "saved"])?;
    let refusal = String::from_utf8_lossy(&copied.stderr).into_owned();
    ensure!(!copied.status.success() && refusal.contains("--secret"), "{refusal}");
    lighter.stdout(["rm", "-f", "keeps"])?;
    ensure!(lighter.leftovers()?.is_empty(), "left: {:?}", lighter.leftovers()?);
    Ok(())
}

/// Regular files below `directory` that have `text` in them.
fn holders(directory: &Path, text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() {
            found.extend(holders(&path, text)?);
        } else if kind.is_file() {
            let status = std::process::Command::new("grep").args(["-qaF", text]).arg(&path).status()?;
            found.extend(status.success().then_some(path));
        }
    }
    Ok(found)
}

fn refused() -> anyhow::Result<()> {
    let lighter = Installation::new()?;
    let host = host()?;
    let _socket = std::os::unix::net::UnixListener::bind(host.path("socket"))?;
    let (_layout, image) = image(&[])?;
    let refused = |mount: &str, what: &str| {
        let arguments = ["run", "--rm", "--network", "none", "-m", "128m", "-v", mount, &image, "true"];
        let output = lighter.output(arguments)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(125) && text.contains(what),
            "{mount}: {}: {text}",
            output.status
        );
        Ok(())
    };
    refused(&host.mount("missing", "/x"), "mkdir -p")?;
    refused(&host.mount("socket", "/x"), "neither a directory nor a regular file")?;
    refused("a/b:/x", "no name for a volume")?;
    refused("data:relative", "from the root of the container")?;
    refused("data:/x:rw,shared", "shared")?;
    // Known only in the guest.
    refused(&host.mount("single", "/etc"), "/etc")?;
    ensure!(lighter.output(["volume", "rm", "nothing"])?.status.code() == Some(1));
    ensure!(lighter.output(["volume", "create", "../x"])?.status.code() == Some(125));
    ensure!(lighter.leftovers()?.is_empty(), "left: {:?}", lighter.leftovers()?);
    Ok(())
}
