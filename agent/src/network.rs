//! `lo`, `eth0` and so on by rtnetlink (rtnetlink(7)): a few requests in one message, one acknowledgement.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use agent_protocol::message::{InterfacePlan, NetworkPlan};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::failure::{Context, Failure};

/// Interfaces that are looked for (stops a loop if the kernel gives nonsense).
pub const MAX_INTERFACES: usize = 16;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
/// NLM_F_REQUEST
const CHANGE: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// CHANGE | NLM_F_CREATE | NLM_F_REPLACE, which links refuse
const SET: u16 = CHANGE | 0x400 | 0x100;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// No address of its own making: those that it has come from the host.
const IN6_ADDR_GEN_MODE_NONE: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: the host gave the address, and waiting for it costs a second.
const IFA_F_NODAD: u8 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// Brings the loopback interface up, which is always the first, and every `eth` there is: that is what costs most,
/// and it is the same for every container. Gives the number of the latter.
pub fn prepare() -> Result<usize, Failure> {
    let mut netlink = Netlink::open()?;
    let mut requests = vec![(link_up(1), "bring lo up")];
    let found = (0..MAX_INTERFACES).map_while(|number| netlink.index(number).ok());
    requests.extend(found.map(|index| (ethernet_up(index), "bring an interface up")));
    let count = requests.len() - 1;
    netlink.request(requests)?;
    Ok(count)
}

/// Configures the interfaces as planned.
pub fn configure(plan: &NetworkPlan) -> Result<(), Failure> {
    if plan.interfaces.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    let mut requests = Vec::new();
    for (number, interface) in plan.interfaces.iter().enumerate().take(MAX_INTERFACES) {
        let index = netlink.index(number).during(&format!(
            "find eth{number} (this kernel needs CONFIG_VIRTIO_NET built in, see docs/kernel.md)"
        ))?;
        requests.extend(interface_requests(index, interface));
    }
    netlink.request(requests)
}

/// Brings `eth<number>` up as planned.
pub fn connect(number: usize, plan: &InterfacePlan) -> Result<(), Failure> {
    let mut netlink = Netlink::open()?;
    let index = netlink.index(number).during(&format!("find eth{number}"))?;
    let mut requests = vec![(ethernet_up(index), "bring an interface up")];
    requests.extend(interface_requests(index, plan));
    netlink.request(requests)
}

fn interface_requests(index: u32, plan: &InterfacePlan) -> Vec<(Message, &'static str)> {
    let mut requests = vec![(identity(index, plan), "give an interface its hardware address")];
    for (address, prefix) in addresses(plan) {
        requests.push((new_address(index, address, prefix), "give an interface its address"));
    }
    for gateway in plan.gateway_v4.map(IpAddr::from).into_iter().chain(plan.gateway_v6.map(IpAddr::from)) {
        requests.push((default_route(index, gateway), "set the default route"));
    }
    requests
}

/// Moves `eth0` and so on, `count` of them, to the network namespace of process `pid`.
pub fn give_away(count: usize, pid: u32) -> Result<(), Failure> {
    let mut netlink = Netlink::open()?;
    let mut requests = Vec::new();
    for number in 0..count.min(MAX_INTERFACES) {
        let mut message = Message::new(RTM_NEWLINK, CHANGE);
        message
            .bytes(&[0; 4])
            .word(netlink.index(number).during(&format!("find eth{number}"))?)
            .word(0)
            .word(0);
        message.attribute(IFLA_NET_NS_PID, &pid.to_ne_bytes());
        requests.push((message, "move an interface to another network namespace"));
    }
    netlink.request(requests)
}

/// Takes the addresses of `plan` from its interfaces, and with them their routes.
pub fn forget(plan: &NetworkPlan) -> Result<(), Failure> {
    let mut netlink = Netlink::open()?;
    let mut requests = Vec::new();
    for (number, interface) in plan.interfaces.iter().enumerate().take(MAX_INTERFACES) {
        let index = netlink.index(number).during(&format!("find eth{number}"))?;
        for (address, prefix) in addresses(interface) {
            let request = address_message(RTM_DELADDR, CHANGE, index, address, prefix);
            requests.push((request, "take an interface's address away"));
        }
    }
    if requests.is_empty() {
        return Ok(());
    }
    netlink.request(requests)
}

fn addresses(plan: &InterfacePlan) -> impl Iterator<Item = (IpAddr, u8)> {
    let v4 = plan.ipv4.map(|(address, prefix)| (IpAddr::from(address), prefix));
    let v6 = plan.ipv6.map(|(address, prefix)| (IpAddr::from(address), prefix));
    v4.into_iter().chain(v6)
}

fn link_up(index: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, CHANGE);
    // struct ifinfomsg: family, pad, type, index, flags, change mask
    message.bytes(&[0; 4]).word(index).word(IFF_UP).word(IFF_UP);
    message
}

fn ethernet_up(index: u32) -> Message {
    let mut message = link_up(index);
    // Attributes within attributes: 8 bytes within 12 within 16.
    message.bytes(&16u16.to_ne_bytes()).bytes(&IFLA_AF_SPEC.to_ne_bytes());
    message.bytes(&12u16.to_ne_bytes()).bytes(&AddressFamily::INET6.as_raw().to_ne_bytes());
    // One byte counts; the other three are padding on a little-endian machine.
    message.bytes(&5u16.to_ne_bytes()).bytes(&IFLA_INET6_ADDR_GEN_MODE.to_ne_bytes());
    message.word(IN6_ADDR_GEN_MODE_NONE);
    message
}

fn identity(index: u32, plan: &InterfacePlan) -> Message {
    let mut message = link_up(index);
    // Six bytes and two of padding, which the length leaves out.
    let [a, b, c, d, e, f] = plan.mac;
    message.bytes(&10u16.to_ne_bytes()).bytes(&IFLA_ADDRESS.to_ne_bytes()).bytes(&[a, b, c, d, e, f, 0, 0]);
    message.attribute(IFLA_MTU, &plan.mtu.to_ne_bytes());
    message
}

fn new_address(index: u32, address: IpAddr, prefix: u8) -> Message {
    address_message(RTM_NEWADDR, SET, index, address, prefix)
}

fn address_message(kind: u16, change: u16, index: u32, address: IpAddr, prefix: u8) -> Message {
    let mut message = Message::new(kind, change);
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    // struct ifaddrmsg: family, prefix length, flags, scope, index
    message.bytes(&[family(address), prefix, flags, 0]).word(index);
    message.attribute(IFA_LOCAL, &octets(address)).attribute(IFA_ADDRESS, &octets(address));
    message
}

fn default_route(index: u32, gateway: IpAddr) -> Message {
    let mut message = Message::new(RTM_NEWROUTE, SET);
    // struct rtmsg: family, prefix lengths of destination and source, tos, table, protocol, scope, type, flags
    message.bytes(&[family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST]).word(0);
    message.attribute(RTA_GATEWAY, &octets(gateway)).attribute(RTA_OIF, &index.to_ne_bytes());
    message
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    u8::try_from(family.as_raw()).unwrap_or(0)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A request under construction: header, fixed part, attributes, each a multiple of four bytes long.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        // struct nlmsghdr: length, type, flags, sequence number, port; the end fills in the rest
        let mut message = Message(Vec::with_capacity(96));
        message.word(0).bytes(&kind.to_ne_bytes()).bytes(&flags.to_ne_bytes()).word(0).word(0);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn word(&mut self, word: u32) -> &mut Self {
        self.bytes(&word.to_ne_bytes())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes(&length.to_ne_bytes()).bytes(&kind.to_ne_bytes()).bytes(value)
    }

    /// The bytes of request number `sequence`, which the kernel acknowledges if it is the `last`.
    fn finish(mut self, sequence: usize, last: bool) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let sequence = u32::try_from(sequence).unwrap_or(u32::MAX);
        if let Some([a, b, c, d, _, _, flags, _, e, f, g, h]) = self.0.first_chunk_mut::<12>() {
            [*a, *b, *c, *d] = length.to_ne_bytes();
            [*e, *f, *g, *h] = sequence.to_ne_bytes();
            *flags |= if last { NLM_F_ACK as u8 } else { 0 };
        }
        self.0
    }
}

struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    fn open() -> Result<Self, Failure> {
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        Ok(Netlink { socket: socket.during("open a netlink socket")? })
    }

    /// Index of `eth<number>`.
    fn index(&self, number: usize) -> rustix::io::Result<u32> {
        rustix::net::netdevice::name_to_index(&self.socket, &format!("eth{number}"))
    }

    /// Sends requests, each with what it is to do, and waits until the last is acknowledged or one has failed.
    fn request(&mut self, requests: Vec<(Message, &'static str)>) -> Result<(), Failure> {
        let (messages, names): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let last = messages.len().saturating_sub(1);
        let all: Vec<u8> = messages
            .into_iter()
            .enumerate()
            .flat_map(|(at, message)| message.finish(at, at == last))
            .collect();
        rustix::net::send(&self.socket, &all, SendFlags::empty()).during("ask for network changes")?;
        let mut reply = [0u8; 512];
        let (count, _) = rustix::net::recv(&self.socket, &mut reply[..], RecvFlags::empty())
            .during("hear of network changes")?;
        match acknowledged(reply.get(..count).unwrap_or_default()) {
            Some((_, 0)) => Ok(()),
            Some((at, errno)) => {
                let what = names.get(at).copied().unwrap_or("network changes");
                Err(rustix::io::Errno::from_raw_os_error(errno.saturating_neg())).during(what)
            }
            None => Err(Failure::agent("network changes: the kernel's answer is no acknowledgement")),
        }
    }
}

/// The number of the request and the error code of an NLMSG_ERROR message: 0 is success.
fn acknowledged(reply: &[u8]) -> Option<(usize, i32)> {
    let kind = u16::from_ne_bytes(*reply.get(4..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*reply.get(8..)?.first_chunk()?);
    let code = i32::from_ne_bytes(*reply.get(16..)?.first_chunk()?);
    (kind == NLMSG_ERROR).then_some((usize::try_from(sequence).ok()?, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_type_and_attributes() {
        let bytes = new_address(2, IpAddr::from([10, 1, 2, 3]), 24).finish(3, true);
        assert_eq!(bytes.len(), 16 + 8 + 8 + 8);
        assert_eq!(bytes[..4], 40u32.to_ne_bytes());
        assert_eq!(bytes[4..6], RTM_NEWADDR.to_ne_bytes());
        assert_eq!((&bytes[6..8], &bytes[8..12]), (&[5, 5][..], &[3, 0, 0, 0][..]));
        assert_eq!(bytes[16..20], [2, 24, 0, 0]);
        assert_eq!(bytes[24..32], [8, 0, IFA_LOCAL as u8, 0, 10, 1, 2, 3]);
        let six = new_address(2, "fd00::1".parse().unwrap(), 64).finish(0, false);
        assert_eq!(six[6..8], [1, 5]);
        assert_eq!(six[16..20], [10, 64, IFA_F_NODAD, 0]);
    }

    #[test]
    fn only_an_error_message_is_an_acknowledgement() {
        let mut reply = vec![36, 0, 0, 0, 2, 0];
        reply.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        reply.extend((-17i32).to_ne_bytes());
        assert_eq!(acknowledged(&reply), Some((2, -17)));
        reply[4] = 3;
        assert_eq!(acknowledged(&reply), None);
        assert_eq!(acknowledged(&reply[..10]), None);
    }
}
