//! User-defined networks with guests in them: names, published ports, what may leave, and that nothing is left.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::namespace::Namespace;

const NEEDS: &[Need] = &[Need::Kvm, Need::Root, Need::Program("ip"), Need::Program("nft")];

fn main() -> ExitCode {
    run_tests(vec![
        test("two_services_find_each_other_by_name_and_the_host_finds_a_published_port", NEEDS, two_services),
        test("a_stopped_container_moves_between_networks", NEEDS, moving),
        test("a_running_container_moves_between_networks", NEEDS, moving_alive),
        test("names_are_asked_of_the_hosts_servers_and_open_the_way_out", NEEDS, names_and_egress),
        test("a_published_port_in_use_is_said_before_the_container_starts", NEEDS, port_in_use),
    ])
}

/// A container on a network of its own answers on a port; another one finds it under each of its names.
fn two_services() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    let installation = Installation::new()?;
    let before = host.inventory()?;
    let lighter = |args: &[&str]| host.stdout(&installation, args);
    lighter(&["network", "create", "--ipv6", "--label", "purpose=test", "web"])?;
    let image = busybox_reference()?;
    let serve = "while :; do echo from db | nc -l -p 7000; done";
    let publish = ["--network", "web", "--network-alias", "store", "-p", "127.0.0.1:18071:7000"];
    let run = [&["run", "-d", "--name", "db"], &publish[..], &[&image, "sh", "-c", serve]].concat();
    lighter(&run)?;
    let shown = lighter(&["ps"])?;
    ensure!(shown.contains("127.0.0.1:18071->7000/tcp"), "{shown}");
    let details = lighter(&["network", "inspect", "web"])?;
    ensure!(details.contains("\"store\"") && details.contains("\"purpose\": \"test\""), "{details}");

    let script = r#"
        for name in db store db.web; do nc -w 30 $name 7000 < /dev/null || echo $name fails; sleep 1; done
        address=$(nslookup db 127.0.0.11 | sed -n 's/^Address: *\([0-9.]*\)$/\1/p')
        nslookup $address 127.0.0.11 | grep -o 'name = .*'
        ping -6 -c 1 -W 10 db > /dev/null && echo ping6 ok
        nslookup nobody 127.0.0.11 > /dev/null 2>&1 || echo nobody is nobody
    "#;
    let output =
        lighter(&["run", "--rm", "--network", "web", "--dns", "127.0.0.1", &image, "sh", "-c", script])?;
    let expected = "from db\nfrom db\nfrom db\nname = db.web\nping6 ok\nnobody is nobody\n";
    ensure!(output == expected, "{output}");

    let call = host.inside(|| {
        let mut stream = TcpStream::connect("127.0.0.1:18071")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let heard = call.join().ok().context("the caller panicked")??;
    ensure!(heard == "from db\n", "the host heard {heard:?}");

    let refused = finish(host.lighter(&installation, &["network", "rm", "web"]).spawn()?, GUEST_DEADLINE)?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("in use by container db"));
    lighter(&["rm", "-f", "db"])?;
    lighter(&["network", "rm", "web"])?;
    let after = host.inventory()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn moving() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    let installation = Installation::new()?;
    let before = host.inventory()?;
    let lighter = |args: &[&str]| host.stdout(&installation, args);
    for name in ["one", "two"] {
        lighter(&["network", "create", name])?;
    }
    let image = busybox_reference()?;
    let show = "ls /sys/class/net; route -n | grep -c '^0.0.0.0'";
    lighter(&["create", "--name", "mover", "--network", "one", &image, "sh", "-c", show])?;
    lighter(&["network", "connect", "--alias", "there", "two", "mover"])?;
    let output = lighter(&["start", "-a", "mover"])?;
    ensure!(output == "eth0\neth1\nlo\n1\n", "{output}");
    lighter(&["network", "disconnect", "one", "mover"])?;
    let output = lighter(&["start", "-a", "mover"])?;
    ensure!(output == "eth0\nlo\n1\n", "{output}");
    let wrong = host.lighter(&installation, &["network", "disconnect", "one", "mover"]).spawn()?;
    let wrong = finish(wrong, GUEST_DEADLINE)?;
    ensure!(String::from_utf8_lossy(&wrong.stderr).contains("not in network one"));
    lighter(&["rm", "mover"])?;
    lighter(&["network", "prune", "--force"])?;
    ensure!(before == host.inventory()?, "{}", host.inventory()?);
    Ok(())
}

/// Its interfaces come and go while its process goes on; names and routes follow.
fn moving_alive() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    let installation = Installation::new()?;
    let before = host.inventory()?;
    let lighter = |args: &[&str]| host.stdout(&installation, args);
    let refused = |args: &[&str], why: &str| {
        let output = finish(host.lighter(&installation, args).spawn()?, GUEST_DEADLINE)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && text.contains(why), "{args:?}: {text}");
        Ok(())
    };
    let image = busybox_reference()?;
    for (network, name, publish) in
        [("one", "mover", "--publish-all"), ("two", "stays", "--publish=127.0.0.1:18073:7000")]
    {
        lighter(&["network", "create", network])?;
        lighter(&["run", "-d", "--name", name, "--network", network, publish, &image, "sleep", "100000"])?;
    }
    lighter(&["network", "connect", "--alias", "guest", "two", "mover"])?;
    let routes = "route -n | awk '/UG/ {print $8}'; ls /sys/class/net";
    ensure!(lighter(&["exec", "mover", "sh", "-c", routes])? == "eth0\neth0\neth1\nlo\n");
    let ping = |from: &str, to: &str| lighter(&["exec", from, "ping", "-c", "1", "-W", "20", to]);
    ping("stays", "guest").context("the newcomer is not found by its alias")?;
    ping("mover", "stays").context("the newcomer does not find others")?;
    refused(&["network", "connect", "two", "mover"], "two")?;
    refused(&["network", "disconnect", "two", "stays"], "published ports")?;
    refused(&["snapshot", "create", "mover"], "restart it first")?;
    lighter(&["network", "disconnect", "one", "mover"])?;
    let output = lighter(&["exec", "mover", "sh", "-c", routes])?;
    ensure!(output == "eth1\neth1\nlo\n", "the way out did not move: {output}");
    refused(&["network", "disconnect", "one", "mover"], "not")?;
    lighter(&["network", "rm", "one"])?;
    // What it is in now is what it starts with.
    lighter(&["restart", "-t", "1", "mover"])?;
    ensure!(lighter(&["exec", "mover", "sh", "-c", routes])? == "eth0\neth0\nlo\n");
    ping("mover", "stays")?;
    lighter(&["rm", "-f", "mover", "stays"])?;
    lighter(&["network", "prune", "--force"])?;
    ensure!(before == host.inventory()?, "{}", host.inventory()?);
    Ok(())
}

/// A name server of the test's own knows two names. Only one of them is allowed.
fn names_and_egress() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    host.add_wire("198.51.100.1/24")?;
    host.run(&["ip", "addr", "add", "198.51.100.2/24", "dev", "wire"])?;
    let server = host.inside(|| Ok(UdpSocket::bind("198.51.100.1:53")?))?;
    let server = server.join().ok().context("no server")??;
    std::thread::spawn(move || serve_names(&server));
    for address in ["198.51.100.1:7000", "198.51.100.2:7000"] {
        let listener =
            host.inside(move || Ok(TcpListener::bind(address)?))?.join().ok().context("no listener")??;
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let _ = client.and_then(|mut client| client.write_all(b"reached\n"));
            }
        });
    }
    let installation = Installation::new()?;
    let script = r#"
        echo allowed: $(nc -w 20 allowed.test 7000 < /dev/null)
        echo denied: $(nc -w 20 denied.test 7000 < /dev/null 2>/dev/null)
        echo other port: $(nc -w 20 allowed.test 7001 < /dev/null 2>/dev/null)
    "#;
    let options = ["--name", "kept", "--dns", "198.51.100.1", "--egress-allow", "allowed.test:7000"];
    let began = Instant::now();
    let child = host.guest(&installation, &options, script)?;
    let output = finish(child, GUEST_DEADLINE)?;
    let heard = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(heard == "allowed: reached\ndenied:\nother port:\n", "{heard}{said}");
    ensure!(began.elapsed() < GUEST_DEADLINE);
    let events = host.stdout(&installation, &["events", "--since", "10m", "--until", "0s"])?;
    let denied = events.lines().filter(|line| line.contains("egress-denied")).collect::<Vec<_>>();
    ensure!(denied.iter().any(|line| line.contains("198.51.100.2")), "{events}");
    ensure!(denied.iter().any(|line| line.contains("198.51.100.1") && line.contains("7001")), "{events}");
    ensure!(!denied.iter().any(|line| line.contains("198.51.100.1") && line.contains("7000")), "{events}");
    Ok(())
}

/// Answers every question for an address: `allowed.test` has one, everything else another one.
fn serve_names(server: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((count, client)) = server.recv_from(&mut buffer) {
        let query = buffer.get(..count).unwrap_or_default();
        let allowed = query.windows(7).any(|window| window == b"allowed");
        let is_a = query.windows(4).any(|window| window == [0, 1, 0, 1]);
        // Header, the question as it came, and for type A one answer that points back to its name.
        let mut answer =
            [query.get(..2).unwrap_or_default(), &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]].concat();
        answer.extend(query.get(12..).unwrap_or_default());
        if is_a {
            answer.extend([
                0xc0,
                12,
                0,
                1,
                0,
                1,
                0,
                0,
                0,
                60,
                0,
                4,
                198,
                51,
                100,
                if allowed { 1 } else { 2 },
            ]);
        }
        let _ = server.send_to(&answer, client);
    }
}

fn port_in_use() -> anyhow::Result<()> {
    let host = Namespace::new()?;
    let installation = Installation::new()?;
    let taken =
        host.inside(|| Ok(TcpListener::bind("0.0.0.0:18072")?))?.join().ok().context("no listener")??;
    let began = Instant::now();
    let output = finish(host.guest(&installation, &["-p", "18072:80"], "true")?, GUEST_DEADLINE)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && said.contains("18072") && said.contains("-p"), "{said}");
    ensure!(host.run(&["ip", "-o", "link"])?.lines().count() == 1, "something was made");
    ensure!(installation.leftovers()?.is_empty(), "{:?}", installation.leftovers()?);
    drop(taken);
    ensure!(began.elapsed() > Duration::ZERO);
    Ok(())
}
