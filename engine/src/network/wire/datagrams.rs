//! Published UDP ports in user mode: what callers send becomes packets from the gateway, and what the guest answers
//! them never reaches passt.
//!
//! ```text
//! caller ⇄ port of the host ── here ── gateway:PORT ⇄ guest:port     a gateway's PORT for each caller
//! ```
//!
//! passt publishes ports too, but what comes from the host's loopback or by IPv6 does not find its way back there. The
//! guest is called by IPv4 whatever the caller speaks. A datagram is one packet: answers that the guest has to send
//! in fragments are lost, as they are in passt.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::packet::{self, ETHERNET, Frame, Packet, UDP};
use super::refusal::checksum;
use crate::network::claim::Claim;

/// The gateway's ports for callers: so many callers at once. One more takes the place of who was silent longest (stops
/// callers from filling the memory, and from locking others out).
const MAX_CALLERS: u16 = 1024;
/// The first of them.
const FIRST_PORT: u16 = 0xc000;
/// Largest payload of a datagram over IPv4.
const MAX_PAYLOAD: usize = 65_535 - 20 - 8;
/// How long a caller is remembered who is silent.
const IDLE: Duration = Duration::from_secs(180);

/// Hardware and IP address.
pub type Station = ([u8; 6], Ipv4Addr);

/// The published ports of one guest.
#[derive(Debug)]
pub struct Datagrams {
    /// Each with the guest's port.
    sockets: Vec<(UdpSocket, u16)>,
    gateway: Station,
    guest: Station,
    callers: Mutex<Callers>,
}

/// Who called.
#[derive(Debug, Default)]
struct Callers {
    /// Index is the gateway's port less [`FIRST_PORT`].
    places: Vec<Caller>,
    known: HashMap<(usize, SocketAddr), u16>,
}

#[derive(Clone, Copy, Debug)]
struct Caller {
    socket: usize,
    address: SocketAddr,
    heard: Instant,
}

impl Datagrams {
    /// What comes to `claims` goes from `gateway` to `guest`.
    pub fn new(claims: Vec<Claim>, gateway: Station, guest: Station) -> Self {
        let socket = |claim: Claim| (UdpSocket::from(claim.socket), claim.published.guest_port);
        let sockets = claims.into_iter().map(socket).collect();
        Self { sockets, gateway, guest, callers: Mutex::default() }
    }

    /// Hands datagrams on to `take`, as frames for the guest, until `wire` is hung up.
    pub fn serve(&self, wire: &UnixStream, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.sockets.iter().try_for_each(|(socket, _)| socket.set_nonblocking(true))?;
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            let mut fds: Vec<_> =
                self.sockets.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::IN)).collect();
            // Asked for nothing, it tells of its end.
            fds.push(PollFd::new(wire, PollFlags::empty()));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.last() == Some(&true) {
                return Ok(());
            }
            for (index, (socket, guest_port)) in
                self.sockets.iter().enumerate().filter(|(index, _)| ready[*index])
            {
                // An ICMP error of an earlier answer is reported here and means nothing.
                let Ok((count, caller)) = socket.recv_from(&mut buffer) else { continue };
                let port = self.port_of(index, caller, Instant::now());
                if let Some(frame) = self.frame(port, *guest_port, buffer.get(..count).unwrap_or_default()) {
                    take(&frame)?;
                }
            }
        }
    }

    /// Sends a frame of the guest to the caller whom it answers; false if it is none.
    pub fn answer(&self, frame: &[u8]) -> bool {
        let Frame::Whole(Packet { destination, protocol: UDP, ports: Some((from, to)), .. }) =
            packet::read(frame)
        else {
            return false;
        };
        if destination != self.gateway.1 {
            return false;
        }
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let caller =
            to.checked_sub(FIRST_PORT).and_then(|place| callers.places.get(usize::from(place)).copied());
        drop(callers);
        let Some(caller) = caller.filter(|caller| caller.heard.elapsed() < IDLE) else { return false };
        let Some((socket, _)) = self.sockets.get(caller.socket).filter(|(_, port)| *port == from) else {
            return false;
        };
        if let Some(payload) = payload(frame) {
            // A caller that is gone, or a full buffer: datagrams are lost at times.
            let _ = socket.send_to(payload, caller.address);
        }
        true
    }

    /// The gateway's port that stands for `address` at that socket.
    fn port_of(&self, socket: usize, address: SocketAddr, now: Instant) -> u16 {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let Callers { places, known } = &mut *callers;
        let caller = Caller { socket, address, heard: now };
        let number = match known.get(&(socket, address)) {
            Some(number) => *number,
            None if places.len() < usize::from(MAX_CALLERS) => {
                places.push(caller);
                u16::try_from(places.len() - 1).unwrap_or(0)
            }
            None => {
                let oldest = (0..).zip(places.iter()).min_by_key(|(_, caller)| caller.heard);
                oldest.map_or(0, |(number, _)| number)
            }
        };
        if let Some(place) = places.get_mut(usize::from(number)) {
            known.remove(&(place.socket, place.address));
            *place = caller;
        }
        known.insert((socket, address), number);
        FIRST_PORT + number
    }

    /// Ethernet (IEEE 802.3), IPv4 (RFC 791) and UDP (RFC 768) around a payload.
    fn frame(&self, from: u16, to: u16, payload: &[u8]) -> Option<Vec<u8>> {
        let udp_len = u16::try_from(payload.len() + 8).ok()?;
        let total = udp_len.checked_add(20)?.to_be_bytes();
        let (gateway, guest) = (self.gateway, self.guest);
        let head = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, UDP, 0, 0];
        let addresses = [gateway.1.octets(), guest.1.octets()].concat();
        let sum = checksum(&[&head, &addresses]);
        let mut frame = [&guest.0[..], &gateway.0, &[8, 0], &head[..10], &sum, &addresses].concat();
        frame.extend([from.to_be_bytes(), to.to_be_bytes(), udp_len.to_be_bytes(), [0, 0]].concat());
        let pseudo = [&addresses, &[0, UDP][..], &udp_len.to_be_bytes()].concat();
        let sum = match checksum(&[&pseudo, frame.get(ETHERNET + 20..)?, payload]) {
            // "None" is written as zero, and zero otherwise.
            [0, 0] => [0xff, 0xff],
            sum => sum,
        };
        frame.splice(ETHERNET + 26.., sum);
        frame.extend(payload);
        Some(frame)
    }
}

/// What a UDP datagram in a whole IPv4 packet carries, as far as it says and is there.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let header = usize::from(*frame.get(ETHERNET)? & 0xf) * 4;
    let udp = frame.get(ETHERNET + header..)?;
    let len = u16::from_be_bytes(*udp.get(4..)?.first_chunk()?);
    udp.get(8..usize::from(len))
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::frame;
    use super::*;
    use crate::network::port::{Published, Transport};

    const GATEWAY: Station = ([2; 6], Ipv4Addr::new(10, 0, 2, 2));
    const GUEST: Station = ([4; 6], Ipv4Addr::new(10, 0, 2, 15));

    fn datagrams(address: &str) -> (Datagrams, SocketAddr) {
        let socket = UdpSocket::bind(address).unwrap();
        let host = socket.local_addr().unwrap();
        let published = Published { host, guest_port: 53, transport: Transport::Udp };
        (Datagrams::new(vec![Claim { published, socket: socket.into() }], GATEWAY, GUEST), host)
    }

    #[test]
    fn callers_of_both_versions_are_heard_and_answered() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (datagrams, host) = datagrams(address);
            let caller = UdpSocket::bind(address).unwrap();
            caller.send_to(b"hello", host).unwrap();
            let (wire, machine) = UnixStream::pair().unwrap();
            let mut heard = Vec::new();
            let result = datagrams.serve(&wire, |frame| {
                heard = frame.to_vec();
                machine.shutdown(std::net::Shutdown::Both)
            });
            result.unwrap();
            let Frame::Whole(packet) = packet::read(&heard) else { panic!("{heard:x?}") };
            assert_eq!((packet.source, packet.destination), (GATEWAY.1.into(), GUEST.1.into()));
            let (port, 53) = packet.ports.unwrap() else { panic!("{packet:?}") };
            assert_eq!(payload(&heard), Some(&b"hello"[..]));
            assert_eq!(checksum(&[&heard[14..34]]), [0, 0]);
            let pseudo = [&heard[26..34], &[0, UDP], &heard[38..40]].concat();
            assert_eq!(checksum(&[&pseudo, &heard[34..]]), [0, 0]);

            let mut answer = [53u16.to_be_bytes(), port.to_be_bytes(), [0, 10], [0, 0]].concat();
            answer.extend(b"hi, and what the packet does not count");
            assert!(datagrams.answer(&frame("10.0.2.2", UDP, &answer)));
            let mut buffer = [0; 16];
            assert_eq!(caller.recv(&mut buffer).unwrap(), 2);
            // From another port, to nobody, or to somebody else: no answer.
            let other = |from: u16, to: u16| [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat();
            assert!(!datagrams.answer(&frame("10.0.2.2", UDP, &other(54, port))));
            assert!(!datagrams.answer(&frame("10.0.2.2", UDP, &other(53, port + 1))));
            assert!(!datagrams.answer(&frame("10.0.2.3", UDP, &other(53, port))));
        }
    }

    #[test]
    fn a_caller_keeps_its_port_and_the_longest_silent_one_makes_room() {
        let (datagrams, _) = datagrams("127.0.0.1:0");
        let now = Instant::now();
        let caller = |number: u16| SocketAddr::from(([127, 0, 0, 1], number));
        let port =
            |number: u16, later: u64| datagrams.port_of(0, caller(number), now + Duration::from_secs(later));
        for number in 0..MAX_CALLERS {
            assert_eq!(port(number + 1, u64::from(number)), FIRST_PORT + number);
        }
        assert_eq!(port(1, 5000), FIRST_PORT);
        assert_eq!(port(9999, 5001), FIRST_PORT + 1);
        let callers = datagrams.callers.lock().unwrap();
        assert_eq!((callers.places.len(), callers.known.len()), (1024, 1024));
    }
}
