//! `--network bridge` and `none`, in a network namespace that the test makes and removes: the host's own
//! network is never touched.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, binary, finish};
use lighter_tests::namespace::Namespace;

const NETWORK: &[Need] = &[Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("nft")];

fn main() -> ExitCode {
    run_tests(vec![
        test("guest_and_host_reach_each_other_and_nothing_is_left", NETWORK, guest_and_host),
        test("two_guests_reach_each_other", NETWORK, two_guests),
        test("a_guest_reaches_the_world_beyond_the_host_through_nat", NETWORK, beyond_the_host),
        test(
            "bridge_without_the_privilege_says_what_is_missing",
            &[Need::Kvm, Need::Root, Need::Program("setpriv")],
            without_privilege,
        ),
    ])
}

/// Reads lines until one begins with `prefix`; gives the rest of it.
fn line_with(stdout: &mut impl BufRead, prefix: &str) -> anyhow::Result<String> {
    loop {
        let mut line = String::new();
        ensure!(stdout.read_line(&mut line)? > 0, "no line with {prefix:?}");
        if let Some(rest) = line.strip_prefix(prefix) {
            return Ok(rest.trim().to_owned());
        }
    }
}

/// The guest serves one connection; the host connects; then the guest connects to a listener on the bridge.
fn guest_and_host() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let installation = Installation::new()?;
    let before = namespace.inventory()?;
    let script = r#"
        echo address $(ifconfig eth0 | sed -n 's/.*inet addr:\([0-9.]*\).*/\1/p')
        echo gateway $(route -n | awk '$1 == "0.0.0.0" { print $2 }')
        grep -q nameserver /etc/resolv.conf && echo dns yes || echo dns no
        ping -c 1 -W 5 $(route -n | awk '$1 == "0.0.0.0" { print $2 }') > /dev/null && echo ping ok
        echo serving; echo from the guest | nc -l -p 7000
        read port; nc $(route -n | awk '$1 == "0.0.0.0" { print $2 }') $port < /dev/null
    "#;
    let mut child = namespace.guest(&installation, &["-i"], script)?;
    let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
    let address = line_with(&mut stdout, "address ")?;
    let gateway = line_with(&mut stdout, "gateway ")?;
    ensure!(!address.is_empty() && !gateway.is_empty(), "address {address:?}, gateway {gateway:?}");
    line_with(&mut stdout, "dns yes")?;
    line_with(&mut stdout, "ping ok")?;
    line_with(&mut stdout, "serving")?;
    let mut heard = String::new();
    for _ in 0..50 {
        let output = namespace
            .command(&["/bin/busybox", "nc", "-w", "60", &address, "7000"])
            .stdin(Stdio::null())
            .output()?;
        heard = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    ensure!(heard == "from the guest\n", "the host heard {heard:?} from {address}");

    let mut listener = namespace
        .command(&["/bin/busybox", "nc", "-l", "-p", "7001"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    listener.stdin.take().context("no stdin")?.write_all(b"from the host\n")?;
    child.stdin.take().context("no stdin")?.write_all(b"7001\n")?;
    line_with(&mut stdout, "from the host")?;
    let output = finish(child, GUEST_DEADLINE)?;
    listener.wait()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let after = namespace.inventory()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn two_guests() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let installation = Installation::new()?;
    let show = "echo address $(ifconfig eth0 | sed -n 's/.*inet addr:\\([0-9.]*\\).*/\\1/p')";
    let mut server =
        namespace.guest(&installation, &[], &format!("{show}; echo hello neighbour | nc -l -p 7000"))?;
    let mut stdout = BufReader::new(server.stdout.take().context("no stdout")?);
    let address = line_with(&mut stdout, "address ")?;
    let script = format!(
        "{show}; for n in 1 2 3 4 5; do nc -w 60 {address} 7000 < /dev/null && exit 0; sleep 1; done; exit 1"
    );
    let client = finish(namespace.guest(&installation, &[], &script)?, GUEST_DEADLINE)?;
    let heard = String::from_utf8_lossy(&client.stdout);
    ensure!(heard.contains("hello neighbour"), "{heard}{}", String::from_utf8_lossy(&client.stderr));
    ensure!(!heard.contains(&format!("address {address}\n")), "both guests have {address}");
    let output = finish(server, GUEST_DEADLINE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let links = namespace.run(&["ip", "-o", "link"])?;
    ensure!(links.lines().count() == 1, "left behind: {links}");
    Ok(())
}

/// A second namespace, joined to the first by a veth pair and without a route back to the guests' subnet.
fn beyond_the_host() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    let world = Namespace::new()?;
    host.run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", &world.name])?;
    for (namespace, link, address) in [(&host, "up0", "198.51.100.1/24"), (&world, "up1", "198.51.100.2/24")]
    {
        namespace.run(&["ip", "addr", "add", address, "dev", link])?;
        namespace.run(&["ip", "link", "set", link, "up"])?;
    }
    let mut listener = world
        .command(&["/bin/busybox", "nc", "-l", "-p", "7000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    listener.stdin.take().context("no stdin")?.write_all(b"from beyond\n")?;
    let installation = Installation::new()?;
    let child = host.guest(&installation, &[], "nc -w 60 198.51.100.2 7000 < /dev/null")?;
    let output = finish(child, GUEST_DEADLINE)?;
    let _ = listener.kill();
    listener.wait()?;
    ensure!(output.stdout == b"from beyond\n", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn without_privilege() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let mut child = Command::new("setpriv")
        .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
        .arg(binary())
        .args(["run", "--rm", "--network", "bridge", &image, "true"])
        .env("LIGHTER_ROOT", installation.root())
        .env("LIGHTER_RUN", installation.run_directory())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stderr = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut stderr)?;
    let status = child.wait()?;
    ensure!(status.code() == Some(125), "{status}: {stderr}");
    ensure!(stderr.contains("CAP_NET_ADMIN") && stderr.contains("--network user"), "{stderr}");
    Ok(())
}
