//! IPv4 subnets: one for the bridge that nothing on the host uses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Prefix length of the bridge's subnet: room for 253 guests.
const PREFIX: u8 = 24;
/// Where free subnets are looked for, in this order: private space (RFC 1918) that other tools rarely take.
const CANDIDATES: [(u8, u8); 4] = [(10, 77), (10, 213), (172, 29), (192, 168)];

/// An IPv4 subnet. Its first address is the bridge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Prefix length.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bridge's address, which is the guests' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base.wrapping_add(1))
    }

    /// The addresses for guests, with the number by which each is leased.
    pub fn hosts(&self) -> impl Iterator<Item = (u32, Ipv4Addr)> + use<> {
        let (base, count) = (self.base, 1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0));
        // Neither the subnet itself, the gateway nor the broadcast address.
        (2..count.saturating_sub(1)).map(move |number| (number, Ipv4Addr::from(base.wrapping_add(number))))
    }

    fn overlaps(&self, other: &Subnet) -> bool {
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
        if (8..=30).contains(&prefix) { Ok(Self { base: base.into(), prefix }) } else { Err(()) }
    }
}

/// Destinations of all routes in the text of `/proc/net/route`, without the default route.
pub fn routes(text: &str) -> Vec<Subnet> {
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
    fn the_gateway_is_first_and_guests_get_the_rest() {
        let subnet: Subnet = "10.77.3.0/24".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 77, 3, 1));
        let hosts: Vec<_> = subnet.hosts().collect();
        assert_eq!(hosts.len(), 253);
        assert_eq!(hosts[0], (2, Ipv4Addr::new(10, 77, 3, 2)));
        assert_eq!(hosts[252], (254, Ipv4Addr::new(10, 77, 3, 254)));
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0/24", "10.0.0.0/31", "10.0.0.0/0", "x/24"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
