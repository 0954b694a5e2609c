//! The subnets of a bridge: IPv4, chosen so that nothing on the host uses it, and IPv6.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::container::id::random;

/// Prefix length of the bridge's subnet: room for 253 guests.
const PREFIX: u8 = 24;
/// Where free subnets are looked for, in this order: private space (RFC 1918) that other tools rarely take.
const CANDIDATES: [(u8, u8); 4] = [(10, 77), (10, 213), (172, 29), (192, 168)];

/// An IPv4 subnet. Its first address is the bridge's, unless another one is chosen.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// The first subnet that overlaps none of `taken`.
    pub fn choose(taken: &[Subnet]) -> Option<Subnet> {
        let third = |(a, b): (u8, u8)| (0..=255u8).map(move |c| Ipv4Addr::new(a, b, c, 0));
        let mut candidates =
            CANDIDATES.into_iter().flat_map(third).map(|base| Subnet { base: base.into(), prefix: PREFIX });
        candidates.find(|candidate| !taken.iter().any(|other| candidate.overlaps(other)))
    }

    /// As [`Subnet::choose`], from the other end: the default bridge finds its usual subnet free.
    pub fn choose_for_user(taken: &[Subnet]) -> Option<Subnet> {
        let mut candidates = CANDIDATES.into_iter().flat_map(|(a, b)| {
            (0..=255u8).rev().map(move |c| Subnet { base: Ipv4Addr::new(a, b, c, 0).into(), prefix: PREFIX })
        });
        candidates.find(|candidate| !taken.iter().any(|other| candidate.overlaps(other)))
    }

    /// Prefix length.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bridge's address, which is the guests' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base.wrapping_add(1))
    }

    /// The addresses that somebody may have, with the number by which each is leased.
    pub fn hosts(&self) -> impl Iterator<Item = (u32, Ipv4Addr)> + use<> {
        let base = self.base;
        // Neither the subnet itself nor the broadcast address.
        (1..self.size().saturating_sub(1))
            .map(move |number| (number, Ipv4Addr::from(base.wrapping_add(number))))
    }

    /// The number by which `address` is leased, if it can be.
    pub fn number(&self, address: Ipv4Addr) -> Option<u32> {
        let number = u32::from(address).checked_sub(self.base)?;
        (1..self.size().saturating_sub(1)).contains(&number).then_some(number)
    }

    fn size(&self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        let shorter = self.prefix.min(other.prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        self.base & mask == other.base & mask
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (base, prefix) = text.trim().split_once('/').ok_or(())?;
        let base: Ipv4Addr = base.parse().map_err(|_| ())?;
        let prefix: u8 = prefix.parse().map_err(|_| ())?;
        if !(8..=30).contains(&prefix) {
            return Err(());
        }
        Ok(Self { base: u32::from(base) & (u32::MAX << (32 - prefix)), prefix })
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|()| format!("{text:?} is no IPv4 subnet of prefix length 8 to 30"))
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

/// An IPv6 subnet. The addresses in it have the numbers of the IPv4 ones.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6 {
    base: u128,
    prefix: u8,
}

impl Subnet6 {
    /// A /64 of a random unique local prefix (RFC 4193, section 3.2).
    pub fn random() -> Self {
        let [a, b, c, d, e, ..] = random();
        Self { base: u128::from_be_bytes([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), prefix: 64 }
    }

    /// Prefix length.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address with this number.
    pub fn host(&self, number: u32) -> Ipv6Addr {
        Ipv6Addr::from(self.base | u128::from(number))
    }

    /// The number of `address`, if it is in here.
    pub fn number(&self, address: Ipv6Addr) -> Option<u32> {
        let number = u128::from(address).checked_sub(self.base)?;
        u32::try_from(number).ok().filter(|number| *number > 0)
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Subnet6) -> bool {
        let mask = u128::MAX << (128 - self.prefix.min(other.prefix));
        self.base & mask == other.base & mask
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (base, prefix) = text.trim().split_once('/').ok_or(())?;
        let base: Ipv6Addr = base.parse().map_err(|_| ())?;
        let prefix: u8 = prefix.parse().map_err(|_| ())?;
        // Longer ones have no room for the numbers of an IPv4 subnet.
        if !(16..=96).contains(&prefix) {
            return Err(());
        }
        Ok(Self { base: u128::from(base) & (u128::MAX << (128 - prefix)), prefix })
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|()| format!("{text:?} is no IPv6 subnet of prefix length 16 to 96"))
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> String {
        subnet.to_string()
    }
}

/// Destinations of the host's routes, as seen from this thread's network namespace.
pub fn host_routes() -> std::io::Result<Vec<Subnet>> {
    Ok(routes(&std::fs::read_to_string("/proc/thread-self/net/route")?))
}

/// Destinations of all routes in the text of `/proc/net/route`, without the default route.
fn routes(text: &str) -> Vec<Subnet> {
    // Columns: Iface Destination Gateway Flags RefCnt Use Metric Mask; addresses in the host's byte order.
    let parse = |line: &str| -> Option<Subnet> {
        let mut columns = line.split_whitespace();
        let hex = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
        let base = hex(columns.nth(1)?)?;
        let mask = hex(columns.nth(5)?)?;
        (mask != 0).then(|| Subnet { base, prefix: mask.leading_ones() as u8 })
    };
    text.lines().skip(1).filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        vpn0\t0000D50A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";

    #[test]
    fn subnets_of_the_hosts_routes_are_avoided() {
        let taken = routes(ROUTES);
        assert_eq!(
            taken.iter().map(Subnet::to_string).collect::<Vec<_>>(),
            ["10.77.0.0/24", "10.213.0.0/16"]
        );
        assert_eq!(Subnet::choose(&taken).unwrap().to_string(), "10.77.1.0/24");
        let all_of_ten: Subnet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(Subnet::choose(&[all_of_ten]).unwrap().to_string(), "172.29.0.0/24");
        let everything: Vec<Subnet> =
            ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"].map(|text| text.parse().unwrap()).into();
        assert_eq!(Subnet::choose(&everything), None);
    }

    #[test]
    fn every_address_has_a_number() {
        let subnet: Subnet = "10.77.3.9/24".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.77.3.0/24");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 77, 3, 1));
        let hosts: Vec<_> = subnet.hosts().collect();
        assert_eq!(hosts.len(), 254);
        assert_eq!(hosts[0], (1, Ipv4Addr::new(10, 77, 3, 1)));
        assert_eq!(hosts[253], (254, Ipv4Addr::new(10, 77, 3, 254)));
        assert_eq!(subnet.number(Ipv4Addr::new(10, 77, 3, 7)), Some(7));
        for other in [[10, 77, 3, 0], [10, 77, 3, 255], [10, 77, 4, 7], [10, 77, 2, 7]] {
            assert_eq!(subnet.number(other.into()), None);
        }
    }

    #[test]
    fn an_ipv6_subnet_counts_as_the_ipv4_one() {
        let subnet: Subnet6 = "fd00:1::9/64".parse().unwrap();
        assert_eq!(
            (subnet.to_string().as_str(), subnet.host(7)),
            ("fd00:1::/64", "fd00:1::7".parse().unwrap())
        );
        assert_eq!(subnet.number("fd00:1::7".parse().unwrap()), Some(7));
        assert_eq!(subnet.number("fd00:2::7".parse().unwrap()), None);
        assert!(
            subnet.overlaps(&"fd00::/16".parse().unwrap())
                && !subnet.overlaps(&"fd00:2::/64".parse().unwrap())
        );
        let random = Subnet6::random().to_string();
        assert!(random.starts_with("fd") && random.ends_with("/64"), "{random}");
        for text in ["", "fd00::", "fd00::/8", "fd00::/112", "10.0.0.0/24"] {
            assert!(text.parse::<Subnet6>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0/24", "10.0.0.0/31", "10.0.0.0/0", "x/24", "fd00::/64"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
