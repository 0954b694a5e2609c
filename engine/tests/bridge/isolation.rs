//! What a guest may not do, tried: its frames are written to its TAP, and what comes through is read from another's.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context, ensure};
use engine::network::services::Denial;
use engine::network::{Attachment, NetworkMode, NetworkSpec};
use lighter_tests::harness::{Need, Test, test};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::place::Place;

/// What the TAP puts before each frame.
const VNET_HEADER: usize = 10;
const BROADCAST: [u8; 6] = [0xff; 6];

pub fn tests(needs: &'static [Need]) -> Vec<Test> {
    vec![
        test("a_guest_speaks_only_with_its_own_addresses", needs, spoofing),
        test("two_networks_do_not_reach_each_other", needs, two_networks),
        test("the_hosts_loopback_is_out_of_reach", needs, loopback),
        test("egress_passes_where_it_is_allowed_and_each_denial_is_told", needs, egress),
    ]
}

/// A guest's end of its wire.
struct Guest<'a> {
    tap: &'a OwnedFd,
    mac: [u8; 6],
    ip: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl<'a> Guest<'a> {
    fn new(attachment: &'a Attachment) -> anyhow::Result<Self> {
        let interface = attachment.plan().interfaces.first().context("no interface")?;
        let tap = &attachment.interfaces().first().context("no TAP")?.fd;
        rustix::io::ioctl_fionbio(tap, true)?;
        // The kernel takes frames once it has a queue of ours; without offloads they are whole.
        let (ip, _) = interface.ipv4.context("no address")?;
        Ok(Self { tap, mac: interface.mac, ip, gateway: interface.gateway_v4.unwrap_or(ip) })
    }

    fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        rustix::io::write(self.tap, &[&[0; VNET_HEADER], frame].concat())?;
        Ok(())
    }

    /// Whether a frame with `text` in it arrives within a moment.
    fn hears(&self, text: &[u8]) -> anyhow::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            let mut fds = [PollFd::new(self.tap, PollFlags::IN)];
            let wait = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
            if poll(&mut fds, Some(&wait))? == 0 {
                return Ok(false);
            }
            let count = rustix::io::read(self.tap, &mut buffer)?;
            if buffer.get(..count).is_some_and(|frame| frame.windows(text.len()).any(|window| window == text))
            {
                return Ok(true);
            }
        }
    }

    /// Learns who has `ip` by ARP, asking again as a guest would: the bridge takes nothing from a port before it
    /// has noticed the carrier, which may last a second.
    fn mac_of(&self, ip: Ipv4Addr) -> anyhow::Result<[u8; 6]> {
        let mut buffer = [0; 4096];
        for _ in 0..40 {
            self.send(&arp(1, self.mac, self.mac, self.ip, ip))?;
            let mut fds = [PollFd::new(self.tap, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 300_000_000 }))?;
            let Ok(count) = rustix::io::read(self.tap, &mut buffer) else { continue };
            let frame = buffer.get(VNET_HEADER..count).unwrap_or_default();
            if frame.get(12..14) == Some(&[8, 6])
                && frame.get(20..22) == Some(&[0, 2])
                && frame.get(28..32) == Some(&ip.octets())
            {
                return Ok(frame[22..28].try_into()?);
            }
        }
        anyhow::bail!("nobody answers for {ip}")
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, payload].concat()
}

fn arp(operation: u8, ethernet_source: [u8; 6], mac: [u8; 6], ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let payload = [&head[..], &mac, &ip.octets(), &[0; 6], &target.octets()].concat();
    ethernet(BROADCAST, ethernet_source, [8, 6], &payload)
}

fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).unwrap_or(u16::MAX);
    // Without a checksum, which UDP over IPv4 allows.
    let mut datagram = vec![0x30, 0x39];
    datagram.extend(port.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(text);
    ip(17, from, to, &datagram)
}

fn ip(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

fn spoofing() -> anyhow::Result<()> {
    let place = Place::new()?;
    let (first, second) = (place.attach()?, place.attach()?);
    let (one, other) = (Guest::new(&first)?, Guest::new(&second)?);
    let stranger = Ipv4Addr::from(u32::from(other.ip) + 1);
    let four = [8, 0];
    let own = |text: &[u8]| ethernet(BROADCAST, one.mac, four, &udp(one.ip, other.ip, 9, text));
    // First what must pass, or the rest would prove nothing.
    one.send(&own(b"honest"))?;
    ensure!(other.hears(b"honest")?, "an honest frame was lost");
    one.send(&arp(1, one.mac, one.mac, one.ip, other.ip))?;
    ensure!(other.hears(&arp(1, one.mac, one.mac, one.ip, other.ip))?, "an honest ARP request was lost");
    let forged = [
        (
            "another MAC address",
            ethernet(BROADCAST, [2, 9, 9, 9, 9, 9], four, &udp(one.ip, other.ip, 9, b"forged")),
        ),
        (
            "the neighbour's MAC address",
            ethernet(BROADCAST, other.mac, four, &udp(one.ip, other.ip, 9, b"forged")),
        ),
        ("another IP address", ethernet(BROADCAST, one.mac, four, &udp(stranger, other.ip, 9, b"forged"))),
        (
            "the gateway's IP address",
            ethernet(BROADCAST, one.mac, four, &udp(one.gateway, other.ip, 9, b"forged")),
        ),
        (
            "no IP address",
            ethernet(BROADCAST, one.mac, four, &udp(Ipv4Addr::UNSPECIFIED, other.ip, 9, b"forged")),
        ),
        ("a VLAN tag", ethernet(BROADCAST, one.mac, [0x81, 0], b"\0\x01\x08\0forged")),
        ("another protocol", ethernet(BROADCAST, one.mac, [0x88, 0xcc], b"forged")),
    ];
    for (what, frame) in forged {
        one.send(&frame)?;
        ensure!(!other.hears(b"forged")?, "a frame with {what} passed");
    }
    let poison = [
        ("the gateway's address", arp(2, one.mac, one.mac, one.gateway, other.ip)),
        ("another sender", arp(2, one.mac, [2, 9, 9, 9, 9, 9], one.ip, other.ip)),
    ];
    for (what, frame) in poison {
        one.send(&frame)?;
        ensure!(!other.hears(&frame)?, "an ARP answer with {what} passed");
    }
    Ok(())
}

fn two_networks() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.network("web", false)?;
    place.network("db", false)?;
    let spec = |name: &str| NetworkSpec { mode: NetworkMode::bridge(name), ..NetworkSpec::default() };
    let (web, db) = (place.attach_as(&spec("web"))?, place.attach_as(&spec("db"))?);
    let neighbour = place.attach_as(&spec("db"))?;
    let (one, other, neighbour) = (Guest::new(&web)?, Guest::new(&db)?, Guest::new(&neighbour)?);
    // Everyone is there: the host knows where to send what is for them.
    for guest in [&one, &other, &neighbour] {
        guest.mac_of(guest.gateway)?;
    }
    let gateway = one.mac_of(one.gateway)?;
    one.send(&ethernet(gateway, one.mac, [8, 0], &udp(one.ip, other.ip, 9, b"across")))?;
    ensure!(!other.hears(b"across")?, "a packet came from one network into the other");
    one.send(&ethernet(BROADCAST, one.mac, [8, 0], &udp(one.ip, other.ip, 9, b"across")))?;
    ensure!(!other.hears(b"across")?, "a broadcast came from one network into the other");
    neighbour.send(&ethernet(
        BROADCAST,
        neighbour.mac,
        [8, 0],
        &udp(neighbour.ip, other.ip, 9, b"within"),
    ))?;
    ensure!(other.hears(b"within")?, "neighbours do not reach each other");
    Ok(())
}

fn loopback() -> anyhow::Result<()> {
    let place = Place::new()?;
    let attachment = place.attach()?;
    let guest = Guest::new(&attachment)?;
    let gateway = guest.mac_of(guest.gateway)?;
    let listener = UdpSocket::bind("127.0.0.1:0")?;
    listener.set_read_timeout(Some(Duration::from_millis(300)))?;
    let port = listener.local_addr()?.port();
    // The worst case: somebody allowed it for another reason.
    std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")?;
    let to_loopback = udp(guest.ip, Ipv4Addr::LOCALHOST, port, b"inside");
    guest.send(&ethernet(gateway, guest.mac, [8, 0], &to_loopback))?;
    ensure!(listener.recv(&mut [0; 64]).is_err(), "a guest reached the host's loopback");
    let open = UdpSocket::bind((guest.gateway, 0))?;
    open.set_read_timeout(Some(Duration::from_secs(2)))?;
    let to_gateway = udp(guest.ip, guest.gateway, open.local_addr()?.port(), b"outside");
    guest.send(&ethernet(gateway, guest.mac, [8, 0], &to_gateway))?;
    let count = open.recv(&mut [0; 64]).context("a guest does not reach the gateway")?;
    ensure!(count == 7);
    // A service of the host that listens on loopback only is not found under the gateway's address either.
    let service = TcpListener::bind("127.0.0.1:0")?;
    let address = (guest.gateway, service.local_addr()?.port());
    ensure!(std::net::TcpStream::connect(address).is_err());
    Ok(())
}

fn egress() -> anyhow::Result<()> {
    let place = Place::new()?;
    let free = place.attach()?;
    let gateway = free.plan().interfaces[0].gateway_v4.context("no gateway")?;
    let neighbour = Guest::new(&free)?;
    let open = UdpSocket::bind((gateway, 0))?;
    open.set_read_timeout(Some(Duration::from_millis(500)))?;
    let closed = UdpSocket::bind((gateway, 0))?;
    closed.set_read_timeout(Some(Duration::from_millis(300)))?;
    let (open_port, closed_port) = (open.local_addr()?.port(), closed.local_addr()?.port());
    let spec = NetworkSpec {
        mode: NetworkMode::bridge("bridge"),
        egress: Some(vec![format!("{gateway}:{open_port}").parse()?]),
        ..NetworkSpec::default()
    };
    let mut attachment = place.attach_as(&spec)?;
    let (sender, denied) = std::sync::mpsc::channel::<Denial>();
    let vsock = place.base.path().join("v.sock");
    attachment.serve(&vsock, Box::new(move |denial| drop(sender.send(denial))))?;
    let guest = Guest::new(&attachment)?;
    let host = guest.mac_of(guest.gateway)?;
    let send = |to: [u8; 6], ip: Ipv4Addr, port: u16| {
        guest.send(&ethernet(to, guest.mac, [8, 0], &udp(guest.ip, ip, port, b"egress")))
    };
    send(host, gateway, open_port)?;
    open.recv(&mut [0; 64]).context("an allowed packet was lost")?;
    send(host, gateway, closed_port)?;
    ensure!(closed.recv(&mut [0; 64]).is_err(), "a packet to another port passed");
    let world = Ipv4Addr::new(198, 51, 100, 7);
    send(host, world, 443)?;
    send(neighbour.mac, neighbour.ip, 53)?;
    ensure!(!neighbour.hears(b"egress")?, "a packet to a neighbour passed");
    let mut found = Vec::new();
    while let Ok(denial) = denied.recv_timeout(Duration::from_secs(2)) {
        found.push((denial.destination.to_string(), denial.protocol, denial.port));
        if found.len() == 2 {
            break;
        }
    }
    // There is no route to the world here, so that packet ends before it is judged.
    let expected = [(gateway.to_string(), 17, Some(closed_port)), (neighbour.ip.to_string(), 17, Some(53))];
    ensure!(found == expected, "{found:?}, not {expected:?}");
    std::io::stdout().flush()?;
    let _ = guest.tap.as_raw_fd();
    Ok(())
}
