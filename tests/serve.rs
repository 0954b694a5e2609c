//! The engine's API: `lighter serve`, as docs/engine-api.md describes it, with curl, with bad clients, with thousands
//! of them, and with schemathesis.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{busybox_reference, run};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, binary, finish};
use lighter_tests::namespace::Namespace;
use lighter_tests::server::{Server, ask, status};
use serde_json::{Value, json};

const CURL: &[Need] = &[Need::Program("curl")];
const MADE_UP: &[Need] =
    &[Need::Kvm, Need::Root, Need::Program("ip"), Need::Variable("LIGHTER_SCHEMATHESIS")];
const GUEST: &[Need] = &[Need::Kvm, Need::Root, Need::Program("curl"), Need::Program("ip")];

fn main() -> ExitCode {
    run_tests(vec![
        test("the_documented_examples_work", GUEST, examples),
        test("streams_and_a_restart_of_the_server_leave_a_container_alone", GUEST, streams),
        test("bad_requests_are_refused_and_named", CURL, bad_requests),
        test("pages_keys_and_tags_hold_with_two_servers_and_a_restart", &[Need::Kvm], two_servers),
        test("slow_and_vanishing_clients_disturb_nobody", CURL, slow_clients),
        test("a_thousand_connections_are_answered", CURL, many_connections),
        test("ten_thousand_idle_event_streams_are_held", CURL, many_streams),
        test("tenants_neither_see_nor_touch_each_other", GUEST, tenants),
        test("tcp_is_served_with_certificates_only", &[Need::Program("curl"), Need::Program("openssl")], tls),
        test("systemd_hands_sockets_over", &[Need::Program("python3")], activation),
        test("sockets_are_private_and_replaced_only_when_stale", CURL, sockets),
        test("schemathesis_finds_nothing_in_the_engine_api", MADE_UP, schemathesis),
        test("schemathesis_finds_nothing_in_the_microvm_api", MADE_UP, schemathesis_of_a_vmm),
    ])
}

/// A body for a container of busybox.
fn container(name: &str, script: &str) -> anyhow::Result<Value> {
    Ok(json!({"name": name, "image": busybox_reference()?, "command": ["sh", "-c", script],
        "network": {"mode": "none"}}))
}

/// The examples of the page, as one script.
fn examples() -> anyhow::Result<()> {
    let page = include_str!("../docs/engine-api.md");
    let script =
        page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect::<String>();
    let (installation, namespace) = (Installation::new()?, Namespace::new()?);
    let directory = tempfile::tempdir()?;
    let path = format!("{}:{}", binary().parent().context("no directory")?.display(), std::env::var("PATH")?);
    // Whatever fails, nothing is left that would hold the script's output open.
    let leave = "trap 'kill ${server-} || true; lighter rm -f web || true' EXIT\n";
    let mut command = namespace.command(&["sh", "-eux", "-c", &format!("{leave}{script}")]);
    command.env("PATH", path).env("image", busybox_reference()?).current_dir(directory.path());
    command.env("LIGHTER_ROOT", installation.root()).env("LIGHTER_RUN", installation.run_directory());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = finish(child, GUEST_DEADLINE)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    Ok(())
}

/// Attach, exec, logs and the command line over the API, while the server is killed and replaced.
fn streams() -> anyhow::Result<()> {
    let mut server = Server::start(&[])?;
    let mut body = container("one", "while read line; do echo \"got $line\"; done; echo over; sleep 1000")?;
    body["stdin"] = json!(true);
    body["start"] = json!(true);
    server.good("POST", "/v1/containers", Some(&body))?;
    let host = format!("--host=unix://{}", server.socket.display());
    let lighter = |args: &[&str]| {
        let mut all = vec![host.as_str()];
        all.extend(args);
        server.installation.stdout(all)
    };
    ensure!(lighter(&["ps", "--format", "{{.name}} {{.status}}"])? == "one running\n");
    ensure!(lighter(&["exec", "one", "echo", "inside"])? == "inside\n");
    let mut exec =
        server.installation.command([host.as_str(), "exec", "-i", "one", "sh", "-c", "cat; exit 7"]);
    let mut child = exec.stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(&vec![b'x'; 300_000])?;
    let output = finish(child, GUEST_DEADLINE)?;
    ensure!(output.stdout.len() == 300_000 && output.status.code() == Some(7), "{output:?}");
    // Attached, the server dies, and nothing else does.
    let mut attached = server.stream()?;
    let head = "POST /v1/containers/one/attach?stdin=true HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: lighter-frames\r\n\r\n";
    attached.write_all(head.as_bytes())?;
    attached.write_all(b"\0\0\0\0\x05ship\n")?;
    let mut read = String::new();
    let mut chunk = [0; 4096];
    while !read.contains("got ship") {
        let count = attached.read(&mut chunk)?;
        ensure!(count > 0, "the stream ended: {read:?}");
        read += &String::from_utf8_lossy(&chunk[..count]);
    }
    let before = server.good("GET", "/v1/containers/one", None)?;
    server.restart()?;
    let after = server.good("GET", "/v1/containers/one", None)?;
    ensure!(before["vmm_pid"] == after["vmm_pid"] && after["status"] == "running", "{after}");
    let log = server.raw(b"GET /v1/containers/one/logs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    ensure!(log.contains("got ship"), "{log}");
    let killed = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.good("POST", "/v1/containers/one/wait", None));
        std::thread::sleep(Duration::from_millis(200));
        server.good("POST", "/v1/containers/one/kill", None)?;
        waiting.join().map_err(|_| anyhow::anyhow!("the waiter broke down"))?
    })?;
    ensure!(killed["exit_code"] == 137, "{killed}");
    server.good("DELETE", "/v1/containers/one", None).map(drop)
}

fn bad_requests() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let deep = "[".repeat(100_000);
    let large = format!("{{\"image\":\"{}\"}}", "x".repeat(10 << 20));
    let post = |body: &str| {
        format!(
            "POST /v1/containers HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (request, wanted, part) in [
        (post("{"), 400, "EOF"),
        (post(&deep), 400, "invalid"),
        (post(&large), 413, "1048576"),
        (post(r#"{"image":5}"#), 400, "string"),
        (post(r#"{"image":"x","colour":"red"}"#), 400, "colour"),
        (post(r#"{"image":"x","image":"y"}"#), 400, "duplicate"),
        (post(r#"{}"#), 400, "image"),
        (post(r#"{"image":"UPPER CASE"}"#), 400, "UPPER"),
        (post(r#"{"image":"dir:/nowhere"}"#), 400, "/nowhere"),
        (post(r#"{"image":"x","memory_mib":1}"#), 400, "memory"),
        (post(r#"{"image":"x","cpus":-1}"#), 400, "cpus"),
        (post(r#"{"image":"x","labels":{"lighter.x":""}}"#), 400, "lighter.x"),
        (post(r#"{"image":"x","mounts":[{"type":"bind","target":"/a"}]}"#), 400, "source"),
        (post(r#"{"image":"x","network":{"mode":"none","publish":["80"]}}"#), 400, "publish"),
        ("GET /v1/containers?limit=0 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), 400, "limit"),
        (
            "GET /v1/containers?cursor=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(),
            400,
            "cursor",
        ),
        (
            "GET /v1/containers/%2e%2e%2f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(),
            404,
            "no such",
        ),
        ("GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), 404, "openapi"),
        ("PUT /v1/containers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), 405, "GET"),
        ("GET / HTTP/1.1 nonsense\r\n\r\n".into(), 400, ""),
        (format!("GET /v1/version HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)), 431, ""),
    ] {
        let answer = server.raw(request.as_bytes())?;
        let start: String = request.chars().take(120).collect();
        ensure!(status(&answer)? == wanted && answer.contains(part), "{start}: {answer}");
    }
    let (status, problem) = server.call("POST", "/v1/containers/none/start", None)?;
    ensure!(status == 404 && problem["type"] == "/v1/problems/not-found", "{problem}");
    ensure!(server.good("GET", "/v1/problems/not-found", None)?["status"] == 404);
    for (method, path) in
        [("POST", "/v1/containers/x/attach"), ("GET", "/v1/images/x"), ("GET", "/v1/snapshots/x")]
    {
        ensure!(server.call(method, path, None)?.0 == 404, "{path}");
    }
    Ok(())
}

/// Containers that are only created, by two servers of one installation.
fn two_servers() -> anyhow::Result<()> {
    let mut server = Server::start(&[])?;
    let second = server.second()?;
    let image = busybox_reference()?;
    let body = |name: &str| json!({"name": name, "image": image, "command": ["true"], "cold": true, "network": {"mode": "none"}});
    let mut ids = Vec::new();
    for number in 0..5 {
        let made = server.good("POST", "/v1/containers", Some(&body(&format!("c{number}"))))?;
        ids.push(made["id"].as_str().context("no ID")?.to_owned());
    }
    // Pages: newest first; what goes and comes meanwhile leaves out nothing and shows nothing twice.
    let names = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let page = server.good("GET", "/v1/containers?limit=2", None)?;
    ensure!(names(&page) == ["c4", "c3"], "{page}");
    server.installation.stdout(["rm", "c3"])?;
    server.installation.stdout(["create", "--cold", "--network", "none", "--name", "new", &image, "true"])?;
    let next = format!("/v1/containers?limit=2&cursor={}", page["next"].as_str().context("no next")?);
    for socket in [&server.socket, &second.socket] {
        let (_, _, page) = ask(socket, "GET", &next, "x: y", None)?;
        ensure!(names(&page) == ["c2", "c1"], "{page}");
        let rest = format!("/v1/containers?cursor={}", page["next"].as_str().context("no next")?);
        let (_, _, page) = ask(socket, "GET", &rest, "x: y", None)?;
        ensure!(names(&page) == ["c0"] && page["next"].is_null(), "{page}");
    }
    // One key, one container: again, after a restart, and of two servers at once.
    let key = "idempotency-key: k1";
    let post =
        |socket: &Path, key: &str, body: &Value| ask(socket, "POST", "/v1/containers", key, Some(body));
    let (status, _, made) = post(&server.socket, key, &body("keyed"))?;
    ensure!(status == 201, "{made}");
    server.restart()?;
    for socket in [&server.socket, &second.socket] {
        let (status, head, again) = post(socket, key, &body("keyed"))?;
        ensure!(
            status == 200 && again["id"] == made["id"] && head.contains("idempotent-replayed"),
            "{again}"
        );
        let (status, _, other) = post(socket, key, &body("other"))?;
        ensure!(status == 422 && other["type"] == "/v1/problems/idempotency-key-reused", "{other}");
    }
    let at_once = |ask: &(dyn Fn(&Path) -> anyhow::Result<u16> + Sync)| -> anyhow::Result<Vec<u16>> {
        std::thread::scope(|scope| {
            let asking: Vec<_> = [&server.socket, &second.socket, &server.socket, &second.socket]
                .into_iter()
                .map(|socket| scope.spawn(|| ask(socket)))
                .collect();
            let joined =
                asking.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("broke down"))?);
            joined.collect()
        })
    };
    let nameless = json!({"image": image, "command": ["true"], "cold": true, "network": {"mode": "none"}, "labels": {"race": ""}});
    let raced = at_once(&|socket| Ok(post(socket, "idempotency-key: k2", &nameless)?.0))?;
    let made = server.good("GET", "/v1/containers?label=race", None)?;
    ensure!(
        names(&made).len() == 1 && raced.iter().filter(|status| **status == 201).count() == 1,
        "{raced:?} {made}"
    );
    ensure!(raced.iter().all(|status| matches!(status, 200 | 201 | 409)), "{raced:?}");
    // One tag, one change.
    let path = format!("/v1/containers/{}", ids[0]);
    let (_, head, _) = ask(&server.socket, "GET", &path, "x: y", None)?;
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).context("no etag")?;
    let change = json!({"restart": "on-failure:3"});
    let if_match = format!("if-match: {tag}");
    let mut raced = at_once(&|socket| Ok(ask(socket, "PATCH", &path, &if_match, Some(&change))?.0))?;
    raced.sort_unstable();
    ensure!(raced == [200, 412, 412, 412], "{raced:?}");
    // Events: all since a time, and what comes behind one that was read.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() + 1;
    let all = format!("/v1/events?since=0&until={now}&type=container");
    let (_, _, told) = ask(&server.socket, "GET", &all, "x: y", None)?;
    let told = told.as_str().unwrap_or_default().to_owned();
    let seen: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    ensure!(seen.len() >= 7, "{told}");
    let (_, _, rest) = ask(&second.socket, "GET", &all, &format!("last-event-id: {}", seen[3]), None)?;
    let rest = rest.as_str().unwrap_or_default().to_owned();
    let left: Vec<&str> = rest.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    ensure!(left == seen[4..], "{left:?} instead of {:?}", &seen[4..]);
    Ok(())
}

fn slow_clients() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let mut half = server.stream()?;
    half.write_all(b"GET /healthz HT")?;
    let mut body = server.stream()?;
    body.write_all(b"POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")?;
    // Gone in the middle of a stream, and in the middle of a body.
    for bytes in [
        &b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        b"POST /v1/images/load HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nx",
    ] {
        let mut gone = server.stream()?;
        gone.write_all(bytes)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(server.good("GET", "/healthz", None)?["status"] == "ok");
    let began = Instant::now();
    let mut rest = String::new();
    let _ = half.read_to_string(&mut rest);
    ensure!(began.elapsed() < Duration::from_secs(25), "half a request held its connection");
    rest.clear();
    let _ = body.read_to_string(&mut rest);
    ensure!(status(&rest)? == 408, "{rest}");
    let metrics = server.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    ensure!(metrics.contains("lighter_api_connections 1\n"), "{metrics}");
    Ok(())
}

fn many_connections() -> anyhow::Result<()> {
    raise_descriptors(4096)?;
    let server = Server::start(&[])?;
    let mut streams = (0..1000).map(|_| server.stream()).collect::<anyhow::Result<Vec<_>>>()?;
    for stream in &mut streams {
        stream.write_all(b"GET /v1/containers HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    }
    for stream in &mut streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(matches!(status(&answer)?, 200 | 503), "{answer}");
    }
    Ok(())
}

fn many_streams() -> anyhow::Result<()> {
    const STREAMS: usize = 10_000;
    /// Memory of the server for each, in bytes.
    const MOST_EACH: u64 = 40 << 10;
    raise_descriptors(STREAMS as u64 + 1000)?;
    let server = Server::start(&[])?;
    let resident = || -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let before = resident()?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = server.stream()?;
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")?;
        streams.push(stream);
    }
    let mut first = [0; 4096];
    for stream in &mut streams {
        let count = stream.read(&mut first)?;
        ensure!(first[..count].starts_with(b"HTTP/1.1 200"), "a stream was refused");
    }
    let each = resident()?.saturating_sub(before) * 1024 / STREAMS as u64;
    eprintln!("{STREAMS} idle streams: {each} bytes each");
    ensure!(each < MOST_EACH, "each stream takes {each} bytes");
    server.good("POST", "/v1/volumes", Some(&json!({"name": "seen"})))?;
    for stream in &mut streams {
        let mut told = String::new();
        while !told.contains("\"seen\"") {
            let count = stream.read(&mut first)?;
            ensure!(count > 0, "a stream ended");
            told += &String::from_utf8_lossy(&first[..count]);
        }
    }
    Ok(())
}

fn raise_descriptors(wanted: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let maximum = now.maximum.map(|most| most.max(wanted));
    if now.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let higher = Rlimit { current: Some(wanted), maximum };
    setrlimit(Resource::Nofile, higher)
        .context("cannot raise RLIMIT_NOFILE: run as root, or raise its hard limit")
}

fn digest(token: &str) -> anyhow::Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(token.as_bytes())?;
    let text = String::from_utf8(child.wait_with_output()?.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn tenants() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tokens");
    let tokens = json!({"admin_token_sha256": [digest("root")?], "tenants": {
        "blue": {"token_sha256": [digest("b")?], "host_paths": true, "vms": 0, "disk_mib": 1000},
        "red": {"token_sha256": [digest("r")?]}}});
    std::fs::write(&file, tokens.to_string())?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    let server = Server::start(&["--tokens", &file.display().to_string()])?;
    // Templates are the tests' own: nothing that runs is needed for blue.
    let templates = server.installation.root().join("templates").read_link()?;
    let blue = server.installation.root().join("tenants/blue");
    std::fs::create_dir_all(&blue)?;
    std::os::unix::fs::symlink(templates, blue.join("templates"))?;
    let body = container("one", "true")?;
    ensure!(server.call("GET", "/v1/containers", None)?.0 == 401);
    ensure!(server.call_as(Some("x"), "GET", "/v1/containers", None)?.0 == 401);
    ensure!(server.call("GET", "/healthz", None)?.0 == 200);
    let (status, made) = server.call_as(Some("b"), "POST", "/v1/containers", Some(&body))?;
    ensure!(status == 201, "{made}");
    server.call_as(Some("b"), "POST", "/v1/networks", Some(&json!({"name": "net"})))?;
    for (token, seen) in [("b", 1), ("r", 0), ("root", 0)] {
        let (_, list) = server.call_as(Some(token), "GET", "/v1/containers", None)?;
        ensure!(list["items"].as_array().context("no list")?.len() == seen, "{token}: {list}");
        let (_, networks) = server.call_as(Some(token), "GET", "/v1/networks", None)?;
        ensure!(networks["items"].as_array().context("no list")?.len() == 1 + seen, "{token}: {networks}");
    }
    ensure!(server.call_as(Some("r"), "DELETE", "/v1/containers/one", None)?.0 == 404);
    let (status, refused) = server.call_as(Some("r"), "POST", "/v1/containers", Some(&body))?;
    ensure!(status == 403 && refused["type"] == "/v1/problems/forbidden", "{refused}");
    let (status, refused) = server.call_as(Some("b"), "POST", "/v1/containers/one/start", None)?;
    ensure!(status == 403 && refused["type"] == "/v1/problems/quota-exceeded", "{refused}");
    ensure!(server.call_as(Some("r"), "GET", "/v1/system/doctor", None)?.0 == 403);
    ensure!(server.log().contains("\"tenant\":\"blue\""));
    Ok(())
}

fn tls() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
        for who in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout $who.key -out $who.csr
            openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out $who.pem
        done";
    run(Command::new("sh").args(["-ec", script]).current_dir(directory.path()))?;
    // A port that is free now.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let listen = format!("127.0.0.1:{port}");
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let _server = Server::start(&[
        "--listen",
        &listen,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
    ])?;
    let url = format!("https://localhost:{port}/v1/version");
    let curl = |more: &[&str]| {
        Command::new("curl")
            .args(["-sS", "-m", "10", "--noproxy", "*", "--cacert", &ca])
            .args(more)
            .arg(&url)
            .output()
    };
    let good = curl(&["--cert", &file("client.pem"), "--key", &file("client.key")])?;
    ensure!(String::from_utf8_lossy(&good.stdout).contains("agent_protocol"), "{good:?}");
    ensure!(!curl(&[])?.status.success(), "a client without a certificate was served");
    let mut plain = TcpStream::connect(("127.0.0.1", port))?;
    plain.write_all(b"GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    ensure!(!answer.starts_with(b"HTTP"), "plain HTTP was served over TCP");
    let alone = Installation::new()?.output(["serve", "--listen", &listen])?;
    ensure!(String::from_utf8_lossy(&alone.stderr).contains("--tls-cert"), "{alone:?}");
    Ok(())
}

fn activation() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let socket = installation.root().join("handed.sock");
    let script = "import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[2]); s.listen(16); os.dup2(s.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[1], [sys.argv[1], 'serve'])";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(binary()).arg(&socket);
    command.env("LIGHTER_ROOT", installation.root()).env("LIGHTER_RUN", installation.run_directory());
    let child = command.stderr(Stdio::null()).spawn()?;
    let server = Server::started(installation, child, socket)?;
    ensure!(server.good("GET", "/v1/version", None)?["api"] == "1.1");
    Ok(())
}

fn sockets() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut server = Server::start(&[])?;
    let mode = server.socket.metadata()?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let socket = server.socket.display().to_string();
    let second = server.installation.output(["serve", "--socket", &socket])?;
    ensure!(String::from_utf8_lossy(&second.stderr).contains("served already"), "{second:?}");
    // Killed, it leaves a stale one; ended in order, none.
    server.restart()?;
    server.good("GET", "/healthz", None)?;
    let mut events = server.stream()?;
    events.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut chunk = [0; 4096];
    ensure!(events.read(&mut chunk)? > 0);
    let began = Instant::now();
    drop(server);
    ensure!(began.elapsed() < Duration::from_secs(5), "the end took {:?}", began.elapsed());
    let mut rest = Vec::new();
    events.read_to_end(&mut rest)?;
    ensure!(!Path::new(&socket).exists(), "the socket is still there");
    Ok(())
}

/// What schemathesis makes up for the engine's API.
fn schemathesis() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    server.good("POST", "/v1/volumes", Some(&json!({"name": "there"})))?;
    // What measures the host for minutes, and what streams without end.
    let exclude = ["--exclude-operation-id", "compare", "--exclude-operation-id", "streamEvents"];
    made_up("engine", &server.socket, &exclude)?;
    ensure!(server.good("GET", "/healthz", None)?["status"] == "ok");
    Ok(())
}

/// The same for the microVM API.
fn schemathesis_of_a_vmm() -> anyhow::Result<()> {
    let versions: Value =
        serde_json::from_str(&Installation::shared()?.stdout(["version", "--format", "json"])?)?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("vm.sock");
    let mut command = Command::new(versions["vmm"].as_str().context("lighter names no VMM")?);
    command.arg("--api-sock").arg(&socket).current_dir(directory.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let end = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(&socket).is_err() {
        ensure!(Instant::now() < end, "the VMM does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
    let found = made_up("microvm", &socket, &[]);
    let goes_on = child.try_wait()?.is_none();
    let _ = child.kill();
    child.wait()?;
    found?;
    ensure!(goes_on, "the VMM ended");
    Ok(())
}

/// Every operation of a document with what schemathesis makes up, inside a network namespace without a way out: nothing
/// is answered that the document does not say, and nothing with 5xx.
fn made_up(document: &str, socket: &Path, more: &[&str]) -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    // It speaks TCP only: what it says is handed on.
    let listener = namespace.inside(|| Ok(TcpListener::bind("127.0.0.1:8080")?))?;
    let listener = listener.join().map_err(|_| anyhow::anyhow!("no listener"))??;
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&socket) else { continue };
            let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
            std::thread::spawn(move || {
                hand_on(from, &to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
            std::thread::spawn(move || {
                hand_on(server, &client);
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let program = std::env::var("LIGHTER_SCHEMATHESIS")?;
    let document = format!("{}/../resources/api/{document}.openapi.json", env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir()?;
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let mut command = namespace.command(&[&program, "run", &document, "--url", "http://127.0.0.1:8080"]);
    command.current_dir(directory.path()).args(["--checks", checks, "--phases", "coverage,fuzzing"]);
    command.args(["--max-examples", "4", "--max-time", "25", "--workers", "4", "--seed", "6", "--no-shrink"]);
    command.args(["--request-timeout", "30", "--generation-database", "none", "--no-color"]).args(more);
    command.env("PYTHONPATH", env!("CARGO_MANIFEST_DIR")).env("SCHEMATHESIS_HOOKS", "schemathesis_hooks");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = finish(child, Duration::from_secs(150))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn hand_on(mut from: impl std::io::Read, mut to: impl std::io::Write) {
    let _ = std::io::copy(&mut from, &mut to);
}
