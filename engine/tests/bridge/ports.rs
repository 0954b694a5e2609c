//! Published ports without a guest: a process in a namespace of its own, behind a veth pair, stands for it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use engine::network::spec::Endpoint;
use engine::network::{Attachment, NetworkError, NetworkMode, NetworkSpec, port};
use lighter_tests::harness::{Need, Test, test};
use lighter_tests::image::run;
use rustix::thread::UnshareFlags;

use super::place::{Place, inventory};

pub fn tests(needs: &'static [Need]) -> Vec<Test> {
    vec![
        test("a_published_port_leads_to_the_container_also_from_loopback", needs, published),
        test("a_port_in_use_is_said_before_anything_is_made", needs, in_use),
    ]
}

/// Stands for the guest: a thread in a network namespace with the guest's addresses, echoing on port 80.
fn guest(attachment: &Attachment, bridge: &str) -> anyhow::Result<()> {
    let interface = attachment.plan().interfaces.first().context("no interface")?.clone();
    let (address, prefix) = interface.ipv4.context("no address")?;
    let gateway = interface.gateway_v4.context("no gateway")?;
    let (ready, is_ready) = std::sync::mpsc::channel::<u32>();
    let (moved, has_moved) = std::sync::mpsc::channel::<()>();
    let (served, is_served) = std::sync::mpsc::channel::<anyhow::Result<()>>();
    let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
    std::thread::spawn(move || {
        let work = || -> anyhow::Result<()> {
            // SAFETY: only this thread's network namespace changes.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            ready.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())?;
            has_moved.recv()?;
            let ip = |args: &[&str]| run(Command::new("ip").args(args)).map(drop);
            ip(&["link", "set", "guest1", "address", &mac])?;
            ip(&["addr", "add", &format!("{address}/{prefix}"), "dev", "guest1"])?;
            ip(&["link", "set", "guest1", "up"])?;
            ip(&["route", "add", "default", "via", &gateway.to_string()])?;
            let tcp = TcpListener::bind("0.0.0.0:80")?;
            let udp = UdpSocket::bind("0.0.0.0:80")?;
            served.send(Ok(()))?;
            std::thread::spawn(move || {
                let mut buffer = [0; 2000];
                while let Ok((count, client)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..count], client);
                }
            });
            for client in tcp.incoming() {
                let mut client = client?;
                writeln!(client, "{}", client.peer_addr()?.ip())?;
            }
            Ok(())
        };
        if let Err(error) = work() {
            let _ = served.send(Err(error));
        }
    });
    let thread = is_ready.recv()?;
    let ip = |args: &[&str]| run(Command::new("ip").args(args)).map(drop);
    ip(&["link", "add", "guest0", "type", "veth", "peer", "name", "guest1", "netns", &thread.to_string()])?;
    ip(&["link", "set", "guest0", "master", bridge, "up"])?;
    moved.send(())?;
    is_served.recv()?
}

/// What the guest says on this address: who called.
fn call(ip: IpAddr, port: u16) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((ip, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

fn published() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    run(Command::new("ip").args(["link", "add", "wire", "type", "bridge"]))?;
    run(Command::new("ip").args(["addr", "add", "198.51.100.1/24", "dev", "wire"]))?;
    run(Command::new("ip").args(["link", "set", "wire", "up"]))?;
    let mut publish = port::parse("18080:80")?;
    publish.extend(port::parse("127.0.0.1:18081:80/udp")?);
    publish.extend(port::parse("127.0.0.1::80")?);
    let spec = NetworkSpec { mode: NetworkMode::bridge("bridge"), publish, ..NetworkSpec::default() };
    let mut attachment = place.attach_as(&spec)?;
    attachment.serve(&place.base.path().join("v.sock"), Box::new(|_| {}))?;
    guest(&attachment, &place.networks.bridge_name("bridge"))?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let gateway = attachment.plan().interfaces[0].gateway_v4.context("no gateway")?;
    ensure!(call(loopback, 18080)? == gateway.to_string(), "loopback is not served by the proxy");
    ensure!(call("::1".parse()?, 18080)? == gateway.to_string(), "[::1] is not served");
    ensure!(call("198.51.100.1".parse()?, 18080)? == "198.51.100.1", "the host's address is not translated");
    let chosen = attachment.published().last().context("no port")?.host.port();
    ensure!(call(loopback, chosen)? == gateway.to_string());
    ensure!(call("198.51.100.1".parse()?, chosen).is_err(), "a port of loopback is open to others");
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    client.send_to(b"ping", "127.0.0.1:18081")?;
    let mut buffer = [0; 16];
    let (count, from) = client.recv_from(&mut buffer)?;
    ensure!(&buffer[..count] == b"ping" && from.to_string() == "127.0.0.1:18081", "{from}");
    drop(attachment);
    ensure!(TcpStream::connect((loopback, 18080)).is_err(), "the port outlives its container");
    for link in ["guest0", "wire"] {
        let _ = run(Command::new("ip").args(["link", "del", link]));
    }
    ensure!(inventory()? == before, "before:\n{before}\nafter:\n{}", inventory()?);
    Ok(())
}

fn in_use() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let number = taken.local_addr()?.port();
    let publish = port::parse(&format!("127.0.0.1:{number}:80"))?;
    let endpoint = Endpoint { network: "bridge".into(), ..Endpoint::default() };
    let spec = NetworkSpec { mode: NetworkMode::Bridges(vec![endpoint]), publish, ..NetworkSpec::default() };
    let error = place.attach_as(&spec).err().context("a port was published twice")?;
    ensure!(matches!(&error, NetworkError::Port { host, .. } if host.port() == number), "{error}");
    ensure!(inventory()? == before, "{}", inventory()?);
    Ok(())
}
