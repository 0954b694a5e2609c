//! Ports of the host, claimed before anything starts: whoever has one of them already is heard of first.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

use super::NetworkError;
use super::port::{Publish, Published, Transport};

/// Connections that wait for the proxy.
const BACKLOG: i32 = 128;
/// How often another free port is tried where one is free for one IP version only.
const FREE_PORT_ATTEMPTS: usize = 16;

/// A port of the host that is ours. The socket listens.
#[derive(Debug)]
pub struct Claim {
    /// What it is for.
    pub published: Published,
    /// Bound to it.
    pub socket: OwnedFd,
}

/// Claims all of `ports`; `None` as host address stands for all IPv4 and, if there are, IPv6 addresses.
pub fn claim_all(ports: &[Publish]) -> Result<Vec<Claim>, NetworkError> {
    ports.iter().try_fold(Vec::new(), |mut claims, port| {
        claims.extend(claim(port)?);
        Ok(claims)
    })
}

fn claim(port: &Publish) -> Result<Vec<Claim>, NetworkError> {
    let Some(wanted) = port.host_port else {
        let mut result = claim_at(port, 0);
        for _ in 0..FREE_PORT_ATTEMPTS {
            if result.is_ok() {
                break;
            }
            result = claim_at(port, 0);
        }
        return result;
    };
    claim_at(port, wanted)
}

fn claim_at(port: &Publish, number: u16) -> Result<Vec<Claim>, NetworkError> {
    let one = |ip: IpAddr, number: u16| {
        let host = SocketAddr::new(ip, number);
        let socket = open(host, port.transport);
        let claim = socket.and_then(|socket| {
            let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
            let published = Published { host: bound, guest_port: port.guest_port, transport: port.transport };
            Ok(Claim { published, socket })
        });
        claim.map_err(|source| NetworkError::Port { host, transport: port.transport, source })
    };
    if let Some(ip) = port.host_ip {
        return Ok(vec![one(ip, number)?]);
    }
    let four = one(Ipv4Addr::UNSPECIFIED.into(), number)?;
    let number = four.published.host.port();
    match one(Ipv6Addr::UNSPECIFIED.into(), number) {
        Ok(six) => Ok(vec![four, six]),
        Err(NetworkError::Port { source, .. }) if is_without_ipv6(&source) => Ok(vec![four]),
        Err(error) => Err(error),
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(host: SocketAddr, transport: Transport) -> io::Result<OwnedFd> {
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match transport {
        Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
        Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(protocol))?;
    if host.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if transport == Transport::Tcp {
        // Connections of an earlier container that are still dying do not count.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &host)?;
    if transport == Transport::Tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_port: Option<u16>, transport: Transport) -> Publish {
        Publish { host_ip: Some(Ipv4Addr::LOCALHOST.into()), host_port, guest_port: 80, transport }
    }

    #[test]
    fn a_port_belongs_to_one_at_a_time() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let first = claim_all(&[port(None, transport)]).unwrap();
            let number = first[0].published.host.port();
            assert!(number > 0);
            let error = claim_all(&[port(Some(number), transport)]).unwrap_err();
            assert!(matches!(&error, NetworkError::Port { host, .. } if host.port() == number), "{error}");
            assert!(error.to_string().contains(&number.to_string()), "{error}");
            drop(first);
            claim_all(&[port(Some(number), transport)]).unwrap();
        }
    }
}
