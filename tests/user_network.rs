//! The network in user mode with guests in it: what may leave, also by name, and published UDP ports, both by both
//! versions of IP.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation};
use lighter_tests::namespace::Namespace;

const NEEDS: &[Need] = &[Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("passt")];

fn main() -> ExitCode {
    run_tests(vec![
        test("egress_is_limited_by_address_and_name_and_each_denial_is_told", NEEDS, egress),
        test("a_published_udp_port_answers_callers_even_where_nothing_may_leave", NEEDS, datagrams),
    ])
}

/// A host with addresses of both versions on a wire: 198.51.100.1 and .2, 2001:db8::1 and ::2.
fn host() -> anyhow::Result<Namespace> {
    let host = Namespace::new()?;
    host.add_wire("198.51.100.1/24")?;
    host.run(&["ip", "addr", "add", "198.51.100.2/24", "dev", "wire"])?;
    for address in ["2001:db8::1/64", "2001:db8::2/64"] {
        host.run(&["ip", "addr", "add", address, "dev", "wire", "nodad"])?;
    }
    host.run(&["ip", "-6", "route", "add", "default", "via", "2001:db8::ff", "dev", "wire"])?;
    Ok(host)
}

fn egress() -> anyhow::Result<()> {
    let host = host()?;
    let server = host.inside(|| Ok(UdpSocket::bind("198.51.100.1:53")?))?;
    let server = server.join().ok().context("no name server")??;
    std::thread::spawn(move || serve_names(&server));
    for address in ["198.51.100.1:7000", "198.51.100.2:7000", "[2001:db8::1]:7000", "[2001:db8::2]:7000"] {
        let listener = host.inside(move || Ok(TcpListener::bind(address)?))?;
        let listener = listener.join().ok().context("no listener")??;
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let _ = client.and_then(|mut client| client.write_all(b"reached\n"));
            }
        });
    }
    let installation = Installation::new()?;
    // What is denied is refused at once: the time that nc may take is never taken.
    let script = r#"
        call() { echo "$1 $2: $(nc -w 60 $1 $2 < /dev/null 2>/dev/null)"; }
        call allowed.test 7000; call denied.test 7000; call allowed.test 7001
        call 2001:db8::1 7000; call 2001:db8::2 7000
        ping -c 1 -W 1 198.51.100.1 > /dev/null 2>&1 || echo no ping
    "#;
    let options = ["--network", "user", "--name", "kept", "--dns", "198.51.100.1"];
    let rules = ["--egress-allow", "allowed.test:7000", "--egress-allow", "2001:db8::1"];
    let image = busybox_reference()?;
    let command = [&["run", "--rm"], &options[..], &rules, &[&image, "sh", "-c", script]].concat();
    let began = Instant::now();
    let heard = host.stdout(&installation, &command)?;
    let wanted = "allowed.test 7000: reached\ndenied.test 7000: \nallowed.test 7001: \n\
                  2001:db8::1 7000: reached\n2001:db8::2 7000: \nno ping\n";
    ensure!(heard == wanted, "{heard}");
    ensure!(began.elapsed() < GUEST_DEADLINE);
    let events = host.stdout(&installation, &["events", "--since", "10m", "--until", "0s"])?;
    let denied: Vec<_> = events.lines().filter(|line| line.contains("egress-denied")).collect();
    let told = |parts: &[&str]| denied.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    ensure!(told(&["198.51.100.2", "7000"]) && told(&["198.51.100.1", "7001"]), "{events}");
    ensure!(told(&["2001:db8::2", "7000"]), "{events}");
    ensure!(!told(&["198.51.100.1", "7000"]) && !told(&["2001:db8::1"]), "{events}");
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

/// Answers every question: `allowed.test` has one address, everything else another one, of type A.
fn serve_names(server: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((count, client)) = server.recv_from(&mut buffer) {
        let query = buffer.get(..count).unwrap_or_default();
        let last = if query.windows(7).any(|window| window == b"allowed") { 1 } else { 2 };
        let is_a = query.windows(4).any(|window| window == [0, 1, 0, 1]);
        let head = [0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
        // The record points back to the name in the question.
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, last];
        let record = if is_a { &record[..] } else { &[] };
        let question = query.get(12..).unwrap_or_default();
        let answer = [query.get(..2).unwrap_or_default(), &head, question, record].concat();
        let _ = server.send_to(&answer, client);
    }
}

fn datagrams() -> anyhow::Result<()> {
    let host = host()?;
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let publish = ["--network", "user", "-p", "5353:53/udp", "--egress-allow", "203.0.113.9"];
    let run = [&["run", "-d", "--name", "echo"], &publish[..], &[&image, "/guest/datagram_echo"]].concat();
    host.stdout(&installation, &run)?;
    let shown = host.stdout(&installation, &["ps"])?;
    ensure!(shown.contains("5353->53/udp"), "{shown}");
    for address in ["198.51.100.1:5353", "127.0.0.1:5353", "[2001:db8::1]:5353", "[::1]:5353"] {
        let call = host.inside(move || ask(address.parse()?))?;
        call.join().ok().context("the caller panicked")?.with_context(|| format!("as {address}"))?;
    }
    let events = host.stdout(&installation, &["events", "--since", "10m", "--until", "0s"])?;
    ensure!(!events.contains("egress-denied"), "{events}");
    host.stdout(&installation, &["rm", "-f", "echo"])?;
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    Ok(())
}

/// Says something until it is answered: the guest may not listen yet.
fn ask(address: SocketAddr) -> anyhow::Result<()> {
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let end = Instant::now() + GUEST_DEADLINE;
    while Instant::now() < end {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"hello\n")?;
        let mut answer = [0; 64];
        match socket.recv(&mut answer) {
            Ok(count) => {
                let heard = answer.get(..count).unwrap_or_default();
                ensure!(heard == b"heard hello\n", "{:?}", String::from_utf8_lossy(heard));
                return Ok(());
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("nobody answers")
}
