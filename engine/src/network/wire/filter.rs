//! `--egress-allow` in user mode: what of a guest's frames may leave.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use super::packet::{self, Frame, Packet};
use crate::network::egress::{Destination, EgressRule};
use crate::network::services::Denial;

/// Where one guest may go.
#[derive(Debug)]
pub struct Filter {
    rules: Vec<EgressRule>,
    /// What names have opened.
    named: RwLock<HashSet<(IpAddr, Option<u16>)>>,
}

/// What becomes of a frame of the guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It is forgotten.
    Drop,
    /// It is forgotten, the guest hears so, and whoever watches too.
    Deny(Denial),
}

impl Filter {
    /// Lets through what `rules` say.
    pub fn new(rules: Vec<EgressRule>) -> Self {
        Self { rules, named: RwLock::default() }
    }

    /// Its rules.
    pub fn rules(&self) -> &[EgressRule] {
        &self.rules
    }

    /// Lets the guest reach `port`, or all there is, at an address of a name. The caller bounds how many.
    pub fn allow(&self, address: IpAddr, port: Option<u16>) {
        self.named.write().unwrap_or_else(PoisonError::into_inner).insert((address, port));
    }

    /// Judges a frame of the guest.
    pub fn leaving(&self, frame: &[u8]) -> Verdict {
        match packet::read(frame) {
            Frame::Neighbourly => Verdict::Pass,
            Frame::Whole(packet) if self.is_allowed(&packet) => Verdict::Pass,
            Frame::Whole(packet) | Frame::NotCarried(packet) => Verdict::Deny(Denial {
                destination: packet.destination,
                protocol: packet.protocol,
                port: packet.ports.map(|(_, port)| port),
            }),
            Frame::Chatter | Frame::Malformed => Verdict::Drop,
        }
    }

    fn is_allowed(&self, packet: &Packet) -> bool {
        let (address, port) = (packet.destination, packet.ports.map(|(_, port)| port));
        // passt would open a socket to the host itself.
        if is_this_host(address) {
            return false;
        }
        let covers = |rule: &EgressRule| match rule.destination {
            Destination::Range(network, prefix) => {
                (rule.port.is_none() || rule.port == port) && contains(network, prefix, address)
            }
            Destination::Name(_) => false,
        };
        self.rules.iter().any(covers) || {
            let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
            named.contains(&(address, None)) || (port.is_some() && named.contains(&(address, port)))
        }
    }
}

/// Whether a socket takes the address for the host's own: loopback, "this host" (RFC 1122, section 3.2.1.3), and what
/// begins with ten bytes of zero, IPv4 addresses in IPv6 form among it.
fn is_this_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets(), [0 | 127, ..]),
        IpAddr::V6(address) => address.octets().starts_with(&[0; 10]),
    }
}

/// Whether `address` is in `network/prefix`.
fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    let prefix = u32::from(prefix);
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(32 - prefix).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(128 - prefix).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::tests::{frame, to_port};
    use super::super::packet::{ICMP, ICMP6, TCP, UDP};
    use super::*;

    fn filter(rules: &[&str]) -> Filter {
        Filter::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn passes(filter: &Filter, frame: &[u8]) -> bool {
        filter.leaving(frame) == Verdict::Pass
    }

    #[test]
    fn rules_hold_for_their_addresses_and_ports() {
        let filter = filter(&["192.0.2.0/24:443", "198.51.100.7", "[2001:db8::/32]:53", "allowed.test"]);
        let cases = [
            ("192.0.2.9", TCP, 443, true),
            ("192.0.2.9", UDP, 443, true),
            ("192.0.2.9", TCP, 80, false),
            ("192.0.3.9", TCP, 443, false),
            ("198.51.100.7", TCP, 1, true),
            ("198.51.100.8", TCP, 1, false),
            ("2001:db8:1::1", UDP, 53, true),
            ("2001:db9::1", UDP, 53, false),
            ("10.0.2.2", UDP, 53, false),
        ];
        for (destination, protocol, port, wanted) in cases {
            assert_eq!(
                passes(&filter, &to_port(destination, protocol, port)),
                wanted,
                "{destination}:{port}"
            );
        }
        // A rule with a port is about TCP and UDP.
        assert!(!passes(&filter, &frame("192.0.2.9", ICMP, &[8; 8])));
        assert!(passes(&filter, &frame("198.51.100.7", ICMP, &[8; 8])));
    }

    #[test]
    fn everything_is_a_network_too_but_never_the_host_itself() {
        let filter = filter(&["0.0.0.0/0", "::/0"]);
        assert!(passes(&filter, &to_port("192.0.2.9", TCP, 1)));
        assert!(passes(&filter, &frame("2001:db8::1", ICMP6, &[128; 8])));
        for own in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(!passes(&filter, &to_port(own, TCP, 1)), "{own}");
        }
    }

    #[test]
    fn names_open_their_addresses() {
        let filter = filter(&["allowed.test:80"]);
        let (http, ssh) = (to_port("203.0.113.5", TCP, 80), to_port("203.0.113.5", TCP, 22));
        assert!(!passes(&filter, &http));
        filter.allow([203, 0, 113, 5].into(), Some(80));
        assert!(passes(&filter, &http) && !passes(&filter, &ssh));
        filter.allow([203, 0, 113, 5].into(), None);
        assert!(passes(&filter, &ssh) && passes(&filter, &frame("203.0.113.5", ICMP, &[8; 8])));
    }

    #[test]
    fn a_denial_says_where_it_went() {
        let Verdict::Deny(denial) = filter(&[]).leaving(&to_port("192.0.2.1", TCP, 443)) else { panic!() };
        let wanted = Denial { destination: [192, 0, 2, 1].into(), protocol: TCP, port: Some(443) };
        assert_eq!(denial, wanted);
    }

    proptest! {
        /// Whatever the bytes: what passes is neighbourly or whole, and for an allowed destination, which is read
        /// here once more, by its place alone.
        #[test]
        fn nothing_passes_but_for_what_is_allowed(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            version in 0..3,
            near in any::<bool>(),
        ) {
            if bytes.len() > 60 && version > 0 {
                let (kind, first) = if version == 1 { ([8, 0], 0x45) } else { ([0x86, 0xdd], 0x60) };
                bytes[12..14].copy_from_slice(&kind);
                bytes[14] = first | (bytes[14] & 0xf);
                if near && version == 1 {
                    bytes[30..33].copy_from_slice(&[192, 0, 2]);
                    bytes[23] = [TCP, UDP, ICMP, 2][usize::from(bytes[23]) % 4];
                    let total = u16::try_from(bytes.len() - 14).unwrap();
                    bytes[16..18].copy_from_slice(&total.to_be_bytes());
                    bytes[20] &= 0x40;
                    bytes[21] = 0;
                }
            }
            if passes(&filter(&["192.0.2.0/24"]), &bytes) {
                let four = bytes[12..14] == [8, 0] && bytes[30..33] == [192, 0, 2];
                let six = bytes[12..14] == [0x86, 0xdd] && bytes[20] == ICMP6;
                prop_assert!(four || six || bytes[12..14] == [8, 6]);
            }
        }
    }
}
