//! `lo` and `eth0` by rtnetlink (rtnetlink(7)): a few messages on one socket, each acknowledged.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use agent_protocol::message::NetworkPlan;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::failure::{Context, Failure};

const INTERFACE: &str = "eth0";

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
/// NLM_F_REQUEST | NLM_F_ACK
const CHANGE: u16 = 0x1 | 0x4;
/// The same | NLM_F_CREATE | NLM_F_REPLACE, which links refuse
const SET: u16 = CHANGE | 0x400 | 0x100;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
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

/// Brings the loopback interface up; it is always the first.
pub fn loopback_up() -> Result<(), Failure> {
    Netlink::open()?.request(link_up(1), "bring lo up")
}

/// Configures `eth0` as planned. A plan without an address is for a guest without `eth0`.
pub fn configure(plan: &NetworkPlan) -> Result<(), Failure> {
    if plan.ipv4.is_none() && plan.ipv6.is_none() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    let index = rustix::net::netdevice::name_to_index(&netlink.socket, INTERFACE)
        .during("find eth0 (this kernel needs CONFIG_VIRTIO_NET built in, see docs/kernel.md)")?;
    for (address, prefix) in
        plan.ipv4.map(|(a, p)| (a.into(), p)).into_iter().chain(plan.ipv6.map(|(a, p)| (a.into(), p)))
    {
        netlink.request(new_address(index, address, prefix), "give eth0 its address")?;
    }
    netlink.request(eth0_up(index, plan), "bring eth0 up")?;
    for gateway in plan.gateway_v4.map(IpAddr::from).into_iter().chain(plan.gateway_v6.map(IpAddr::from)) {
        netlink.request(default_route(index, gateway), "set the default route")?;
    }
    Ok(())
}

fn link_up(index: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, CHANGE);
    // struct ifinfomsg: family, pad, type, index, flags, change mask
    message.bytes(&[0; 4]).word(index).word(IFF_UP).word(IFF_UP);
    message
}

fn eth0_up(index: u32, plan: &NetworkPlan) -> Message {
    let mut message = link_up(index);
    // Six bytes and two of padding, which the length leaves out.
    let [a, b, c, d, e, f] = plan.mac;
    message.bytes(&10u16.to_ne_bytes()).bytes(&IFLA_ADDRESS.to_ne_bytes()).bytes(&[a, b, c, d, e, f, 0, 0]);
    message.attribute(IFLA_MTU, &plan.mtu.to_ne_bytes());
    message
}

fn new_address(index: u32, address: IpAddr, prefix: u8) -> Message {
    let mut message = Message::new(RTM_NEWADDR, SET);
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
        // struct nlmsghdr: length (filled at the end), type, flags, sequence number, port
        let mut message = Message(Vec::with_capacity(96));
        message.word(0).bytes(&kind.to_ne_bytes()).bytes(&flags.to_ne_bytes()).word(1).word(0);
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

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.0.first_chunk_mut::<4>() {
            *place = length.to_ne_bytes();
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

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, message: Message, what: &str) -> Result<(), Failure> {
        rustix::net::send(&self.socket, &message.finish(), SendFlags::empty()).during(what)?;
        let mut reply = [0u8; 512];
        let (count, _) = rustix::net::recv(&self.socket, &mut reply[..], RecvFlags::empty()).during(what)?;
        match acknowledged(reply.get(..count).unwrap_or_default()) {
            Some(0) => Ok(()),
            Some(errno) => Err(rustix::io::Errno::from_raw_os_error(-errno)).during(what),
            None => Err(Failure::agent(format!("{what}: the kernel's answer is no acknowledgement"))),
        }
    }
}

/// The error code of an NLMSG_ERROR message: 0 is success.
fn acknowledged(reply: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*reply.get(4..)?.first_chunk()?);
    let code = i32::from_ne_bytes(*reply.get(16..)?.first_chunk()?);
    (kind == NLMSG_ERROR).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_type_and_attributes() {
        let bytes = new_address(2, IpAddr::from([10, 1, 2, 3]), 24).finish();
        assert_eq!(bytes.len(), 16 + 8 + 8 + 8);
        assert_eq!(bytes[..4], 40u32.to_ne_bytes());
        assert_eq!(bytes[4..6], RTM_NEWADDR.to_ne_bytes());
        assert_eq!(bytes[16..20], [2, 24, 0, 0]);
        assert_eq!(bytes[24..32], [8, 0, IFA_LOCAL as u8, 0, 10, 1, 2, 3]);
        let six = new_address(2, "fd00::1".parse().unwrap(), 64).finish();
        assert_eq!(six[16..20], [10, 64, IFA_F_NODAD, 0]);
    }

    #[test]
    fn only_an_error_message_is_an_acknowledgement() {
        let mut reply = vec![36, 0, 0, 0, 2, 0];
        reply.extend([0; 10]);
        reply.extend((-17i32).to_ne_bytes());
        assert_eq!(acknowledged(&reply), Some(-17));
        reply[4] = 3;
        assert_eq!(acknowledged(&reply), None);
        assert_eq!(acknowledged(&reply[..10]), None);
    }
}
