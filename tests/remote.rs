//! `lighter --host`: the command line over the engine's API does what it does without a server.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox, busybox_reference};
use lighter_tests::lighter::{GUEST_DEADLINE, finish};
use lighter_tests::pty::Pty;
use lighter_tests::server::Server;
use serde_json::Value;

const GUEST: &[Need] = &[Need::Kvm, Need::Root, Need::Program("ip")];

fn main() -> ExitCode {
    run_tests(vec![
        test("verbs_do_over_a_server_what_they_do_without", GUEST, verbs),
        test("a_terminal_reaches_a_container_over_a_server_and_leaves_it", GUEST, terminal),
        test("an_image_is_imported_from_an_address", &[Need::Program("tar")], import),
        test("every_format_json_is_json_and_documented", &[], json),
    ])
}

/// The command line over a server.
struct Remote<'a> {
    server: &'a Server,
    host: String,
}

impl<'a> Remote<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, host: format!("--host=unix://{}", server.socket.display()) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut all = vec![self.host.as_str()];
        all.extend(args);
        self.server.installation.command(all)
    }

    /// What it prints, where it has to succeed.
    fn say(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec![self.host.as_str()];
        all.extend(args);
        self.server.installation.stdout(all)
    }

    /// The same with something on stdin, and its exit code.
    fn with_input(&self, args: &[&str], input: &[u8]) -> anyhow::Result<(Option<i32>, Vec<u8>, String)> {
        let mut command = self.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (mut stdin, input) = (child.stdin.take().context("no stdin")?, input.to_vec());
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = finish(child, GUEST_DEADLINE)?;
        let _ = writer.join();
        Ok((output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn verbs() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let (remote, image) = (Remote::new(&server), busybox_reference()?);
    let place = tempfile::tempdir()?;
    let path = |name: &str| place.path().join(name).display().to_string();
    // Attached: both streams, stdin to its end, the exit code, and nothing left.
    std::fs::write(path("secret"), "hunter2")?;
    let (secret, cid) = (format!("key={}", path("secret")), path("cid"));
    let script = "cat /run/secrets/key; wc -c; echo wrong >&2; exit 7";
    let args = ["run", "--rm", "-i", "--network", "none", "--secret", &secret, "--cidfile", &cid, &image];
    let (code, stdout, stderr) =
        remote.with_input(&[&args[..], &["sh", "-c", script]].concat(), &[b'x'; 300_000])?;
    let said = String::from_utf8_lossy(&stdout);
    ensure!(
        code == Some(7) && said == "hunter2300000\n" && stderr.contains("wrong"),
        "{code:?} {said} {stderr}"
    );
    ensure!(remote.say(&["ps", "-aq"])?.is_empty() && std::fs::read_to_string(&cid)?.len() == 12);
    let (code, _, stderr) =
        remote.with_input(&["run", "--rm", "--network", "none", &image, "/nowhere"], b"")?;
    ensure!(code == Some(127) && stderr.contains("/nowhere"), "{code:?} {stderr}");
    // One that stays.
    remote.say(&[
        "run",
        "-d",
        "--name",
        "one",
        "--network",
        "none",
        "--label",
        "a=b",
        &image,
        "sleep",
        "1000",
    ])?;
    // Files, both ways.
    std::fs::create_dir_all(place.path().join("tree/below"))?;
    std::fs::write(path("tree/below/file"), "text")?;
    remote.say(&["cp", &path("tree"), "one:/root"])?;
    remote.say(&["cp", &path("tree/below/file"), "one:/root/renamed"])?;
    remote.say(&["cp", "one:/root/tree", &path("back")])?;
    ensure!(std::fs::read_to_string(path("back/below/file"))? == "text");
    remote.say(&["cp", "one:/root/renamed", &path("alone")])?;
    ensure!(std::fs::read_to_string(path("alone"))? == "text");
    let (_, archive, _) = remote.with_input(&["cp", "one:/root/tree", "-"], b"")?;
    remote.with_input(&["cp", "-", "one:/tmp"], &archive)?;
    ensure!(remote.say(&["exec", "one", "cat", "/tmp/tree/below/file"])? == "text");
    let (code, _, stderr) = remote.with_input(&["cp", "one:/nowhere", &path("x")], b"")?;
    ensure!(code == Some(125) && stderr.contains("/nowhere"), "{stderr}");
    ensure!(remote.say(&["diff", "one"])?.contains("A /root/renamed\n"));
    // Images of it, out and in again.
    let id = remote.say(&[
        "commit",
        "--compression",
        "zstd",
        "-c",
        "CMD [\"x y\"]",
        "-m",
        "why",
        "one",
        "made:1",
    ])?;
    ensure!(remote.say(&["history", "--format", "json", "made:1"])?.contains("why"));
    remote.say(&["save", "-o", &path("saved"), "made:1"])?;
    remote.say(&["tag", "made:1", "made:2"])?;
    remote.say(&["rmi", "made:1", "made:2"])?;
    ensure!(remote.say(&["load", "-i", &path("saved")])? == "Loaded image: made:1\n");
    ensure!(remote.say(&["images", "-q", "--no-trunc"])?.trim() == id.trim());
    remote.say(&["rm", "-f", "one"])?;
    // Networks and volumes.
    remote.say(&["network", "create", "--subnet", "10.219.3.0/24", "--internal", "net"])?;
    ensure!(remote.say(&["network", "inspect", "net"])?.contains("10.219.3.0/24"));
    remote.say(&["network", "rm", "net"])?;
    remote.say(&["volume", "create", "--label", "l=1", "vol"])?;
    ensure!(remote.say(&["volume", "ls", "-q", "--filter", "label=l=1"])? == "vol\n");
    remote.say(&["volume", "rm", "vol"])?;
    remote.say(&["system", "prune", "-f"]).map(drop)
}

fn ended(child: &mut Child) -> anyhow::Result<Option<i32>> {
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status.code()),
            None => ensure!(Instant::now() < end, "lighter does not end"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn terminal() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let (remote, image) = (Remote::new(&server), busybox_reference()?);
    let mut terminal = Pty::open(33, 91)?;
    let before = format!("{:?}", terminal.modes()?);
    let run = ["run", "-it", "--name", "tty", "--network", "none", &image, "sh"];
    let mut child = terminal.spawn(&remote.command(&run))?;
    terminal.expect("# ", GUEST_DEADLINE)?;
    terminal.type_in("echo size $(stty size)\r")?;
    terminal.expect("size 33 91\r\n", GUEST_DEADLINE)?;
    ensure!(terminal.is_raw()?, "the caller's terminal is not raw while the guest has it");
    terminal.type_in("sh -c 'trap \"echo now \\$(stty size); exit\" WINCH; echo wait-$((1+1)); while :; do sleep 0.2; done'\r")?;
    terminal.expect("wait-2", GUEST_DEADLINE)?;
    terminal.resize(20, 70)?;
    terminal.expect("now 20 70", GUEST_DEADLINE)?;
    // Left by the keys, and as it was before.
    terminal.type_in("\x10\x11")?;
    ensure!(ended(&mut child)? == Some(0) && format!("{:?}", terminal.modes()?) == before);
    ensure!(remote.say(&["ps", "--format", "{{.status}}"])? == "running\n");
    // Joined again, with keys of one's own.
    let mut child = terminal.spawn(&remote.command(&["attach", "--detach-keys", "ctrl-x,d", "tty"]))?;
    terminal.type_in("echo again-$((1+1)) $(stty size)\r")?;
    terminal.expect("again-2 20 70", GUEST_DEADLINE)?;
    terminal.type_in("\x18d")?;
    ensure!(ended(&mut child)? == Some(0) && format!("{:?}", terminal.modes()?) == before);
    remote.say(&["rm", "-f", "tty"]).map(drop)
}

/// Gives `answer` to whoever connects, once each; the address.
fn web(answers: Vec<Vec<u8>>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}/root.tar", listener.local_addr()?);
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
            let _ = stream.write_all(&answer);
        }
    });
    Ok(address)
}

fn import() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let remote = Remote::new(&server);
    let tar =
        Command::new("tar").args(["--create", "--directory"]).arg(busybox()?).arg("etc").output()?.stdout;
    let whole = |body: &[u8]| {
        [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
    };
    let mut broken = whole(&tar);
    broken.truncate(broken.len() / 2);
    let missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec();
    let url = web(vec![whole(&tar), whole(&tar), missing.clone(), missing, broken.clone(), broken])?;
    let here = server.installation.stdout(["import", &url, "web:1"])?;
    let there = remote.say(&["import", &url, "web:2"])?;
    ensure!(here.starts_with("sha256:") && there.starts_with("sha256:"), "{here} {there}");
    ensure!(remote.say(&["history", "web:2"])?.contains(&url));
    for why in ["answers 404", "broke off"] {
        let output = server.installation.output(["import", &url, "web:3"])?;
        ensure!(String::from_utf8_lossy(&output.stderr).contains(why), "{output:?}");
        let output = remote.command(&["import", &url, "web:3"]).output()?;
        ensure!(String::from_utf8_lossy(&output.stderr).contains(why), "{output:?}");
    }
    let (status, problem) = server.call("POST", "/v1/images/import?url=ftp%3A%2F%2Fx%2Fy", None)?;
    ensure!(status == 400 && problem["detail"].to_string().contains("http://HOST"), "{problem}");
    let (status, _) = server.call("POST", "/v1/images/import?url=http%3A%2F%2F127.0.0.1%3A1%2Fx", None)?;
    ensure!(status == 424, "{status}");
    ensure!(remote.say(&["images", "--format", "json"])?.matches("web:").count() == 2);
    Ok(())
}

/// Verbs that list or show, here and over a server: JSON, and with the members that docs/cli.md says.
fn json() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let remote = Remote::new(&server);
    let image = busybox_reference()?;
    for name in ["one", "two"] {
        server.installation.stdout([
            "create",
            "--cold",
            "--network",
            "none",
            "--name",
            name,
            &image,
            "true",
        ])?;
    }
    remote.say(&["volume", "create", "vol"])?;
    let tar = tempfile::NamedTempFile::new()?;
    Command::new("tar")
        .args(["--create", "--file"])
        .arg(tar.path())
        .arg("-C")
        .arg(busybox()?)
        .arg("etc")
        .status()?;
    remote.say(&["import", &tar.path().display().to_string(), "flat:1"])?;
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md"))?;
    let rows = page.split("## JSON").nth(1).context("docs/cli.md has no table of JSON")?;
    let rows: Vec<Vec<&str>> = rows
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    ensure!(rows.len() > 15, "too few verbs: {rows:?}");
    for row in rows {
        let [verb, schema, members, ..] = row.as_slice() else { continue };
        let words: Vec<&str> = match *verb {
            // These need a guest, or a registry, or time: their own tests look at them.
            "stats" | "diff" | "compare" | "push" | "pull" | "logs" | "events" | "run --trace"
            | "snapshot inspect" | "inspect --security" => continue,
            "ps" => vec!["ps", "-a", "--format", "json"],
            "inspect" => vec!["inspect", "--format", "json", "one"],
            "image inspect" | "history" => {
                [&verb.split(' ').collect::<Vec<_>>()[..], &["--format", "json", "flat:1"]].concat()
            }
            "network inspect" => vec!["network", "inspect", "--format", "json", "bridge"],
            "volume inspect" => vec!["volume", "inspect", "--format", "json", "vol"],
            prune if prune.ends_with("prune") => {
                [&prune.split(' ').collect::<Vec<_>>()[..], &["--force", "--format", "json"]].concat()
            }
            plain => [&plain.split(' ').collect::<Vec<_>>()[..], &["--format", "json"]].concat(),
        };
        for text in [server.installation.output(&words)?.stdout, remote.command(&words).output()?.stdout] {
            let value: Value = serde_json::from_slice(&text)
                .with_context(|| format!("{words:?}: {}", String::from_utf8_lossy(&text)))?;
            if *schema != "–" {
                ensure!(value["schema"] == *schema, "{words:?}: {value}");
                ensure!(
                    members.split(", ").all(|member| value.get(member.trim_matches('`')).is_some()),
                    "{words:?}: {value}"
                );
            }
        }
    }
    Ok(())
}
