//! The packet filter of one network: two nftables tables of our own, named after its bridge.
//!
//! ```text
//! bridge: every frame of a guest ─► is its source the guest's own? ─► to another guest: is that allowed to it?
//! inet:   from outside only answers and published ports ─► guests' packets leave with the host's address
//! ```
//!
//! A start only adds, which costs the kernel two milliseconds; to remove something it waits for all its
//! processors to have forgotten it, which a start never does.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use super::egress::{Destination, EgressRule};
use super::guest::Guest;
use super::port::{Published, Transport};
use super::subnet::{Subnet, Subnet6};

/// All bridges of all installations of lighter have names that begin so.
pub const BRIDGE_PREFIX: &str = "lighter";
/// Denials that are told of in a second; the rest is dropped without a word (stops a guest from flooding the log).
const DENIALS_PER_SECOND: u32 = 20;
/// Bytes of a denied packet that are looked at: IPv6 header and ports.
const SNAP_LENGTH: u32 = 64;

/// What the rules of a network say.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The bridge.
    pub bridge: &'a str,
    /// Its IPv4 subnet.
    pub subnet: Subnet,
    /// Its IPv6 subnet.
    pub subnet6: Option<Subnet6>,
    /// Nothing leaves it.
    pub internal: bool,
}

impl Rules<'_> {
    /// Makes the tables, in which no guest is yet. They must not exist.
    pub fn install(&self) -> String {
        let Self { bridge, subnet, .. } = *self;
        let mut nat6 = String::new();
        let mut spoof6 = String::new();
        if let Some(subnet6) = self.subnet6 {
            let _ = write!(nat6, "ip6 saddr {subnet6} oifname != \"{bridge}\" masquerade");
            let _ = write!(spoof6, "iifname \"{bridge}\" ip6 saddr != {{ {subnet6}, fe80::/10, :: }} drop");
        } else {
            let _ = write!(spoof6, "iifname \"{bridge}\" meta nfproto ipv6 drop");
        }
        let (masquerade, outward) = if self.internal {
            (String::new(), format!("iifname \"{bridge}\" drop"))
        } else {
            (format!("ip saddr {subnet} oifname != \"{bridge}\" masquerade\n        {nat6}"), String::new())
        };
        // A guest calls a published port through the proxy, which takes it for a client as any other: its own
        // bridge and those of other networks are left out of the translation.
        format!(
            "table inet {bridge} {{
    map ports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
    map bound4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
    map ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
    map bound6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
    map egress4 {{ type ipv4_addr : verdict; }}
    map egress6 {{ type ipv6_addr : verdict; }}
    chain loopback {{
        type filter hook prerouting priority raw; policy accept;
        iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop
        iifname \"{bridge}\" ip6 daddr ::1 drop
    }}
    chain published {{
        dnat ip to meta l4proto . th dport map @ports4
        dnat ip to ip daddr . meta l4proto . th dport map @bound4
        dnat ip6 to meta l4proto . th dport map @ports6
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @bound6
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname != \"{BRIDGE_PREFIX}*\" fib daddr type local jump published
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local jump published
        ip6 daddr != ::1 fib daddr type local jump published
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        {masquerade}
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{bridge}\" ip saddr != {subnet} drop
        {spoof6}
        ct state established,related accept
        iifname != \"{bridge}\" oifname \"{bridge}\" ct status & dnat != dnat drop
        {outward}
        iifname \"{bridge}\" ip saddr vmap @egress4
        iifname \"{bridge}\" ip6 saddr vmap @egress6
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        ct state established,related accept
        iifname \"{bridge}\" ip saddr vmap @egress4
        iifname \"{bridge}\" ip6 saddr vmap @egress6
    }}
}}
table bridge {bridge} {{
    set taps {{ type ifname; }}
    set macs {{ type ifname . ether_addr; }}
    set sources4 {{ type ifname . ipv4_addr; }}
    set sources6 {{ type ifname . ipv6_addr; }}
    map neighbours {{ type ifname : verdict; }}
    map egress {{ type ifname : verdict; }}
    chain guest {{
        iifname . ether saddr != @macs drop
        ether type arp iifname . arp saddr ether != @macs drop
        ether type arp iifname . arp saddr ip != @sources4 drop
        ether type arp accept
        ether type ip iifname . ip saddr != @sources4 drop
        ether type ip accept
        ether type != ip6 drop
        icmpv6 type {{ nd-router-advert, nd-redirect }} drop
        icmpv6 type nd-neighbor-advert iifname vmap @neighbours
        ip6 saddr :: meta l4proto ipv6-icmp accept
        iifname . ip6 saddr != @sources6 drop
    }}
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        iifname @taps jump guest
    }}
    chain forward {{
        type filter hook forward priority 0; policy accept;
        iifname vmap @egress
    }}
}}
"
        )
    }

    /// Removes the tables, whether they are there or not.
    pub fn remove(bridge: &str) -> String {
        ["inet", "bridge"]
            .map(|family| format!("add table {family} {bridge}\ndelete table {family} {bridge}\n"))
            .concat()
    }

    /// Lets a guest in: its sources, its published ports, its destinations.
    pub fn add(&self, guest: &Guest) -> String {
        let mut script = String::new();
        self.limit(guest, &mut script);
        for element in self.elements(guest) {
            let _ = writeln!(script, "add element {element}");
        }
        script
    }

    /// Forgets a guest.
    pub fn forget(&self, guest: &Guest) -> String {
        let (bridge, tap) = (self.bridge, &guest.tap);
        let mut script = String::new();
        for element in self.elements(guest) {
            // What is deleted must be there; what is added may be.
            let _ = write!(script, "add element {element}\ndelete element {}\n", element.key());
        }
        let _ = writeln!(script, "delete chain bridge {bridge} nd_{tap}");
        if guest.egress.is_some() {
            for family in ["inet", "bridge"] {
                let _ = writeln!(script, "delete chain {family} {bridge} egress_{tap}");
                for set in Set::ALL {
                    let _ = writeln!(script, "delete set {family} {bridge} {}_{tap}", set.name);
                }
            }
        }
        script
    }

    /// The chains and sets of one guest alone.
    fn limit(&self, guest: &Guest, script: &mut String) {
        let (bridge, tap) = (self.bridge, &guest.tap);
        let _ = writeln!(script, "add chain bridge {bridge} nd_{tap}");
        if let Some(ipv6) = guest.ipv6 {
            // The target of the advertisement (RFC 4861, section 4.4).
            let target = u128::from(ipv6);
            let _ = writeln!(script, "add rule bridge {bridge} nd_{tap} @th,64,128 != {target:#034x} drop");
        } else {
            let _ = writeln!(script, "add rule bridge {bridge} nd_{tap} drop");
        }
        let Some(egress) = &guest.egress else { return };
        for family in ["inet", "bridge"] {
            for set in Set::ALL {
                let _ =
                    writeln!(script, "add set {family} {bridge} {}_{tap} {{ type {}; }}", set.name, set.kind);
            }
            let chain = format!("{family} {bridge} egress_{tap}");
            let _ = writeln!(script, "add chain {chain}");
            let mut rule = |rule: fmt::Arguments<'_>| {
                let _ = writeln!(script, "add rule {chain} {rule}");
            };
            rule(format_args!(
                "icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report }} accept"
            ));
            if family == "bridge" {
                rule(format_args!("ether type arp accept"));
                // Answers to guests that called; the routed ones are known by their connection.
                rule(format_args!("tcp flags & (syn | ack) != syn accept"));
            }
            for allowed in &egress.rules {
                if let Destination::Range(address, prefix) = allowed.destination {
                    let family = if address.is_ipv4() { "ip" } else { "ip6" };
                    let port =
                        allowed.port.map(|port| format!("meta l4proto {{ tcp, udp }} th dport {port} "));
                    let port = port.unwrap_or_default();
                    rule(format_args!("{family} daddr {address}/{prefix} {port}accept"));
                }
            }
            rule(format_args!("ip daddr @hosts4_{tap} accept"));
            rule(format_args!("ip6 daddr @hosts6_{tap} accept"));
            rule(format_args!("meta l4proto {{ tcp, udp }} ip daddr . th dport @ports4_{tap} accept"));
            rule(format_args!("meta l4proto {{ tcp, udp }} ip6 daddr . th dport @ports6_{tap} accept"));
            rule(format_args!(
                "limit rate {DENIALS_PER_SECOND}/second log group {} snaplen {SNAP_LENGTH}",
                egress.log_group
            ));
            let end = if family == "inet" { "reject with icmpx admin-prohibited" } else { "drop" };
            rule(format_args!("{end}"));
        }
    }

    /// Lets the guest reach `address`, which is one of the name in `rule`.
    pub fn allow(&self, tap: &str, rule: &EgressRule, address: IpAddr) -> String {
        let version = if address.is_ipv4() { 4 } else { 6 };
        let (set, element) = match rule.port {
            None => ("hosts", address.to_string()),
            Some(port) => ("ports", format!("{address} . {port}")),
        };
        ["inet", "bridge"]
            .map(|family| {
                format!("add element {family} {} {set}{version}_{tap} {{ {element} }}\n", self.bridge)
            })
            .concat()
    }

    fn elements(&self, guest: &Guest) -> Vec<Element> {
        let Guest { tap, mac, ipv4, ipv6, ports, egress, .. } = guest;
        let element = |family: &str, set: &str, key: String, value: Option<String>| Element {
            set: format!("{family} {} {set}", self.bridge),
            key,
            value,
        };
        let mut elements = vec![
            element("bridge", "taps", format!("\"{tap}\""), None),
            element("bridge", "macs", format!("\"{tap}\" . {mac}"), None),
            element("bridge", "sources4", format!("\"{tap}\" . {ipv4}"), None),
            element("bridge", "neighbours", format!("\"{tap}\""), Some(format!("jump nd_{tap}"))),
        ];
        if let Some(ipv6) = ipv6 {
            elements.push(element("bridge", "sources6", format!("\"{tap}\" . {ipv6}"), None));
        }
        if egress.is_some() {
            let jump = || Some(format!("jump egress_{tap}"));
            elements.push(element("bridge", "egress", format!("\"{tap}\""), jump()));
            elements.push(element("inet", "egress4", ipv4.to_string(), jump()));
            if let Some(ipv6) = ipv6 {
                elements.push(element("inet", "egress6", ipv6.to_string(), jump()));
            }
        }
        // What is published on a loopback address only the proxy serves.
        for Published { host, guest_port, transport } in
            ports.iter().filter(|port| !port.host.ip().is_loopback())
        {
            let target = match (host.ip(), ipv6) {
                (IpAddr::V4(_), _) => format!("{ipv4} . {guest_port}"),
                (IpAddr::V6(_), Some(ipv6)) => format!("{ipv6} . {guest_port}"),
                (IpAddr::V6(_), None) => continue,
            };
            let version = if host.is_ipv4() { 4 } else { 6 };
            let transport = match transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            let (set, key) = if host.ip().is_unspecified() {
                (format!("ports{version}"), format!("{transport} . {}", host.port()))
            } else {
                (format!("bound{version}"), format!("{} . {transport} . {}", host.ip(), host.port()))
            };
            elements.push(element("inet", &set, key, Some(target)));
        }
        elements
    }
}

/// Sets of destinations that are allowed because a name led to them.
struct Set {
    name: &'static str,
    kind: &'static str,
}

impl Set {
    const ALL: [Set; 4] = [
        Set { name: "hosts4", kind: "ipv4_addr" },
        Set { name: "hosts6", kind: "ipv6_addr" },
        Set { name: "ports4", kind: "ipv4_addr . inet_service" },
        Set { name: "ports6", kind: "ipv6_addr . inet_service" },
    ];
}

/// One element of a set or map.
struct Element {
    set: String,
    key: String,
    value: Option<String>,
}

impl Element {
    fn key(&self) -> String {
        format!("{} {{ {} }}", self.set, self.key)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, key, value } = self;
        match value {
            None => write!(f, "{set} {{ {key} }}"),
            Some(value) => write!(f, "{set} {{ {key} : {value} }}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest::tests::guest;
    use super::*;

    fn rules() -> Rules<'static> {
        let subnet = "10.77.0.0/24".parse().unwrap();
        Rules { bridge: "lighter0", subnet, subnet6: None, internal: false }
    }

    #[test]
    fn rules_name_only_our_bridge() {
        let text = rules().install();
        assert!(text.contains("ip saddr 10.77.0.0/24 oifname != \"lighter0\" masquerade"));
        let internal = Rules { internal: true, ..rules() }.install();
        assert!(!internal.contains("masquerade") && internal.contains("iifname \"lighter0\" drop"));
    }

    #[test]
    fn what_is_published_on_loopback_has_no_rule() {
        let mut guest = guest();
        let publish =
            |host: &str| Published { host: host.parse().unwrap(), guest_port: 80, transport: Transport::Tcp };
        guest.ports = vec![publish("127.0.0.1:8080"), publish("[::]:8080")];
        assert!(!rules().add(&guest).contains("8080"));
        guest.ports.push(publish("0.0.0.0:8081"));
        guest.ports.push(publish("192.0.2.1:8082"));
        let text = rules().add(&guest);
        assert!(text.contains("ports4 { tcp . 8081 : 10.77.0.2 . 80 }"), "{text}");
        assert!(text.contains("bound4 { 192.0.2.1 . tcp . 8082 : 10.77.0.2 . 80 }"), "{text}");
    }
}
