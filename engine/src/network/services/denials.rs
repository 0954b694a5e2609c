//! Packets that `--egress-allow` denied, told by the kernel over netlink (nfnetlink_log).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigMode, PacketNla, ULogMessage, config_request};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::Socket;
use netlink_sys::constants::NETLINK_NETFILTER;
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use crate::container::id::random;

/// Groups from here on are lighter's: what administrators choose by hand is small.
const FIRST_GROUP: u16 = 0x4000;
/// How many groups are tried before giving up.
const ATTEMPTS: usize = 16;
/// Room for messages of one call.
const BUFFER: usize = 64 << 10;
/// Length of a netlink message's header.
const HEADER: usize = 16;

/// A packet that did not pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// Where it was going.
    pub destination: IpAddr,
    /// IANA number of its protocol: 6 is TCP, 17 UDP.
    pub protocol: u8,
    /// Destination port, if the protocol has ports.
    pub port: Option<u16>,
}

/// Hears of the packets of one group, which no other process uses.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    group: u16,
}

impl Listener {
    /// Takes a group of the kernel, in this thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        let mut result = Err(io::ErrorKind::AddrInUse.into());
        for _ in 0..ATTEMPTS {
            let [a, b, ..] = random();
            let group = FIRST_GROUP | u16::from_be_bytes([a, b]);
            result = bind(&mut socket, group).map(|()| group);
            // Some other process has this one.
            if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EBUSY)) {
                break;
            }
        }
        let group = result?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, group })
    }

    /// The group's number, for the rule that denies.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// Tells of denials for as long as it is polled.
    pub async fn serve(self, on_denied: Box<dyn Fn(Denial) + Send>) {
        // SAFETY: the socket owns its descriptor, which is neither closed nor replaced while `AsyncFd` owns the socket.
        let Ok(socket) = (unsafe { AsyncFd::register(self.socket) }) else { return };
        let mut buffer = vec![0; BUFFER];
        loop {
            let Ok(mut ready) = socket.readable().await else { return };
            let received = ready.try_io(|socket| socket.get_ref().recv(&mut &mut buffer[..], 0));
            // An error says that more came than there was room for, and was lost; the next message may be whole.
            if let Ok(Ok(count)) = received {
                denials(buffer.get(..count).unwrap_or_default()).into_iter().for_each(&on_denied);
            }
        }
    }
}

fn bind(socket: &mut Socket, group: u16) -> io::Result<()> {
    let settings = vec![ConfigCmd::Bind.into(), ConfigMode::PACKET_MAX.into()];
    let request = config_request(NetfilterProtoFamily::Unspec, group, settings);
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut reply = vec![0; 4096];
    let count = socket.recv(&mut &mut reply[..], 0)?;
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(reply.get(..count).unwrap_or_default());
    match message.map_err(io::Error::other)?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

/// The packets in the messages of one call.
fn denials(mut bytes: &[u8]) -> Vec<Denial> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(bytes) else { break };
        if let NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::ULog(ULogMessage::Packet(attributes)),
            ..
        }) = &message.payload
        {
            found.extend(attributes.iter().filter_map(|attribute| match attribute {
                PacketNla::Payload(packet) => denial(packet),
                _ => None,
            }));
        }
        let length = (message.header.length as usize).max(HEADER).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    found
}

/// The head of an IP packet (RFC 791, section 3.1; RFC 8200, section 3), as far as it is there.
fn denial(packet: &[u8]) -> Option<Denial> {
    let (destination, protocol, rest) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet.first()? & 0xf) * 4;
            let address: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            (IpAddr::V4(Ipv4Addr::from(address)), *packet.get(9)?, packet.get(length..))
        }
        6 => {
            let address: [u8; 16] = *packet.get(24..)?.first_chunk()?;
            (IpAddr::V6(Ipv6Addr::from(address)), *packet.get(6)?, packet.get(40..))
        }
        _ => return None,
    };
    // TCP, UDP, DCCP, SCTP and UDP-Lite have it in the same place.
    let has_ports = matches!(protocol, 6 | 17 | 33 | 132 | 136);
    let port = rest.filter(|_| has_ports).and_then(|rest| rest.get(2..)?.first_chunk().copied());
    Some(Denial { destination, protocol, port: port.map(u16::from_be_bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_and_port_are_read_as_far_as_they_are_there() {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1];
        packet.extend([0x80, 0, 1, 187]);
        let whole = Denial { destination: [192, 0, 2, 1].into(), protocol: 6, port: Some(443) };
        assert_eq!(denial(&packet), Some(whole.clone()));
        assert_eq!(denial(&packet[..22]), Some(Denial { port: None, ..whole }));
        assert_eq!(denial(&packet[..12]), None);
        let mut six = vec![0x60, 0, 0, 0, 0, 8, 58, 64];
        six.extend([0; 16]);
        six.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        six.extend([128, 0, 0, 0]);
        assert_eq!(
            denial(&six),
            Some(Denial { destination: "fd00::1".parse().unwrap(), protocol: 58, port: None })
        );
        assert_eq!((denial(&[]), denial(&[0x20; 60])), (None, None));
        assert!(denials(&[0xff; 64]).is_empty());
    }
}
