//! What the filter reads of a frame: whom it is for. The guest controls every byte.
//!
//! Only what the user-mode network carries is known here: ARP, neighbour discovery, and TCP, UDP and ICMP in packets
//! that are whole. Nothing else passes, so nothing can be read one way here and another way behind the filter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// IANA numbers of protocols.
pub const ICMP: u8 = 1;
/// As [`ICMP`].
pub const TCP: u8 = 6;
/// As [`ICMP`].
pub const UDP: u8 = 17;
/// As [`ICMP`].
pub const ICMP6: u8 = 58;
/// What an IPv6 packet of multicast listener discovery begins with (RFC 3810, section 5).
const HOP_BY_HOP: u8 = 0;
/// What the kernel says of its multicast groups in IPv4 (RFC 3376).
const IGMP: u8 = 2;
/// Neighbour discovery's own types (RFC 4861, section 4): solicitations, and advertisements of neighbours.
const DISCOVERY: [u8; 3] = [133, 135, 136];

/// A frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame {
    /// Between neighbours on the wire: ARP and neighbour discovery.
    Neighbourly,
    /// A packet to be judged.
    Whole(Packet),
    /// A fragment, or of a protocol that is not carried.
    NotCarried(Packet),
    /// What every kernel says without being asked, and nobody hands on: who hears which multicast group, and ICMP errors,
    /// for example that nobody listens on a port.
    Chatter,
    /// No packet.
    Malformed,
}

/// The head of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Where from.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP.
    pub ports: Option<(u16, u16)>,
}

/// Reads an Ethernet frame.
pub fn read(frame: &[u8]) -> Frame {
    let payload = frame.get(ETHERNET..).unwrap_or_default();
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x06]) => Frame::Neighbourly,
        Some([0x08, 0x00]) => read4(payload).unwrap_or(Frame::Malformed),
        Some([0x86, 0xdd]) => read6(payload).unwrap_or(Frame::Malformed),
        _ => Frame::Malformed,
    }
}

/// RFC 791, section 3.1.
fn read4(packet: &[u8]) -> Option<Frame> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    let total = usize::from(word(packet, 2)?);
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?)));
    let (source, destination, protocol) = (address(12)?, address(16)?, *packet.get(9)?);
    let body = packet.get(header..total)?;
    let head = Packet { source, destination, protocol, ports: None };
    // The flag "more fragments" and the offset.
    let is_fragment = word(packet, 6)? & 0x3fff != 0;
    match protocol {
        TCP | UDP | ICMP if is_fragment => Some(Frame::NotCarried(head)),
        IGMP => Some(Frame::Chatter),
        // Destination unreachable, time exceeded, parameter problem (RFC 792).
        ICMP if matches!(body.first(), Some(3 | 11 | 12)) => Some(Frame::Chatter),
        _ => with_ports(head, body),
    }
}

/// RFC 8200, section 3. Extension headers are not carried.
fn read6(packet: &[u8]) -> Option<Frame> {
    let length = usize::from(word(packet, 4)?);
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let address = |at: usize| packet.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from);
    let (source, destination, protocol) = (address(8)?, address(24)?, *packet.get(6)?);
    let body = packet.get(40..40 + length)?;
    let head = Packet { source: source.into(), destination: destination.into(), protocol, ports: None };
    match protocol {
        ICMP6 if body.first().is_some_and(|kind| DISCOVERY.contains(kind)) => Some(Frame::Neighbourly),
        // Errors (RFC 4443, section 2.1).
        ICMP6 if body.first().is_some_and(|kind| *kind < 128) => Some(Frame::Chatter),
        HOP_BY_HOP if destination.octets().starts_with(&[0xff, 2]) => Some(Frame::Chatter),
        ICMP => Some(Frame::NotCarried(head)),
        _ => with_ports(head, body),
    }
}

/// The same with its ports, if its header is all there.
fn with_ports(head: Packet, body: &[u8]) -> Option<Frame> {
    let shortest = match head.protocol {
        TCP => 20,
        UDP | ICMP => 8,
        ICMP6 if head.destination.is_ipv6() => 4,
        _ => return Some(Frame::NotCarried(head)),
    };
    if body.len() < shortest {
        return None;
    }
    let ports = matches!(head.protocol, TCP | UDP).then_some((word(body, 0)?, word(body, 2)?));
    Some(Frame::Whole(Packet { ports, ..head }))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An Ethernet frame with a packet from 10.0.2.15 or fd6c:6967:6874::15 in it.
    pub fn frame(destination: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        match destination.parse().unwrap() {
            IpAddr::V4(address) => {
                let total = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
                frame.extend([8, 0, 0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend([10, 0, 2, 15]);
                frame.extend(address.octets());
            }
            IpAddr::V6(address) => {
                let length = u16::try_from(body.len()).unwrap().to_be_bytes();
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], protocol, 255]);
                frame.extend("fd6c:6967:6874::15".parse::<Ipv6Addr>().unwrap().octets());
                frame.extend(address.octets());
            }
        }
        frame.extend(body);
        frame
    }

    /// Such a frame of TCP or UDP, from port 4000.
    pub fn to_port(destination: &str, protocol: u8, port: u16) -> Vec<u8> {
        let mut body = vec![0; 20];
        body[..2].copy_from_slice(&4000_u16.to_be_bytes());
        body[2..4].copy_from_slice(&port.to_be_bytes());
        frame(destination, protocol, &body)
    }

    #[test]
    fn whole_packets_of_both_versions_are_read() {
        for destination in ["192.0.2.1", "2001:db8::1"] {
            for protocol in [TCP, UDP] {
                let Frame::Whole(packet) = read(&to_port(destination, protocol, 443)) else { panic!() };
                assert_eq!(packet.destination.to_string(), destination);
                assert_eq!((packet.protocol, packet.ports), (protocol, Some((4000, 443))));
            }
        }
        let Frame::Whole(ping) = read(&frame("192.0.2.1", ICMP, &[8; 8])) else { panic!() };
        assert_eq!(ping.ports, None);
        assert!(matches!(read(&frame("2001:db8::1", ICMP6, &[128; 8])), Frame::Whole(_)));
    }

    #[test]
    fn options_before_the_ports_do_not_hide_them() {
        let mut options = to_port("192.0.2.1", UDP, 53);
        options[14] = 0x46;
        options.splice(34..34, [1, 1, 1, 0]);
        options[17] += 4;
        let Frame::Whole(packet) = read(&options) else { panic!() };
        assert_eq!(packet.ports, Some((4000, 53)));
    }

    #[test]
    fn neighbours_may_speak() {
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(read(&arp), Frame::Neighbourly);
        for kind in DISCOVERY {
            assert_eq!(read(&frame("ff02::1:ff00:2", ICMP6, &[kind, 0, 0, 0])), Frame::Neighbourly);
        }
        assert_eq!(read(&frame("ff02::16", HOP_BY_HOP, &[58; 28])), Frame::Chatter);
        assert_eq!(read(&frame("224.0.0.22", IGMP, &[0; 8])), Frame::Chatter);
        assert_eq!(read(&frame("192.0.2.1", ICMP, &[3; 36])), Frame::Chatter);
        assert_eq!(read(&frame("2001:db8::1", ICMP6, &[1; 36])), Frame::Chatter);
    }

    #[test]
    fn fragments_and_other_protocols_are_not_carried() {
        for flags in [[0x20, 0], [0, 1], [0x1f, 0xff]] {
            let mut fragment = to_port("192.0.2.1", UDP, 53);
            fragment[20..22].copy_from_slice(&flags);
            assert!(matches!(read(&fragment), Frame::NotCarried(Packet { ports: None, .. })), "{flags:?}");
        }
        for protocol in [0, 4, 41, 43, 44, 47, 50, 58, 132, 255] {
            assert!(
                matches!(read(&frame("192.0.2.1", protocol, &[0; 40])), Frame::NotCarried(_)),
                "{protocol}"
            );
        }
        for protocol in [0, 1, 4, 43, 44, 60, 132] {
            let read = read(&frame("2001:db8::1", protocol, &[0; 40]));
            assert!(matches!(read, Frame::NotCarried(_)), "{protocol}");
        }
    }

    #[test]
    fn what_is_cut_off_is_no_packet() {
        for whole in [to_port("192.0.2.1", TCP, 1), to_port("2001:db8::1", TCP, 1)] {
            for len in 0..whole.len() {
                assert_eq!(read(&whole[..len]), Frame::Malformed, "{len}");
            }
        }
        let mut short_header = to_port("192.0.2.1", TCP, 1);
        short_header[14] = 0x44;
        assert_eq!(read(&short_header), Frame::Malformed);
        let mut vlan = to_port("192.0.2.1", TCP, 1);
        vlan[12..14].copy_from_slice(&[0x81, 0]);
        assert_eq!(read(&vlan), Frame::Malformed);
        // Its total length leaves no room for ports.
        let mut no_ports = to_port("192.0.2.1", UDP, 1);
        no_ports[16..18].copy_from_slice(&[0, 22]);
        assert_eq!(read(&no_ports), Frame::Malformed);
    }
}
