//! Published ports: what `-p` says, and what became of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Ports that one container may publish. Each costs a socket and a rule of the host.
pub const MAX_PUBLISHED: usize = 1024;

/// Transport of a port.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
}

/// One port of the container that the host offers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Publish {
    /// Address of the host; `None`: all of them.
    pub host_ip: Option<IpAddr>,
    /// Port of the host; `None`: a free one.
    pub host_port: Option<u16>,
    /// Port in the container.
    pub guest_port: u16,
    /// Of both.
    pub transport: Transport,
}

/// A published port with the address that the host gave it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Published {
    /// Where the host takes connections.
    pub host: SocketAddr,
    /// Port in the container.
    pub guest_port: u16,
    /// Of both.
    pub transport: Transport,
}

/// `-p` cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "-p {text:?}: {why}; write [[HOST_ADDRESS:]HOST_PORT:]PORT[/udp], each port a number or a range such as 8000-8010"
)]
pub struct PublishError {
    text: String,
    why: String,
}

/// All ports of one `-p`.
pub fn parse(text: &str) -> Result<Vec<Publish>, PublishError> {
    let error = |why: &str| PublishError { text: text.to_owned(), why: why.to_owned() };
    let (ports, transport) = match text.rsplit_once('/') {
        Some((ports, transport)) => {
            (ports, transport.parse().map_err(|()| error("the protocol is neither tcp nor udp"))?)
        }
        None => (text, Transport::Tcp),
    };
    let (host, guest) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (address, host) = host.rsplit_once(':').unwrap_or(("", host));
    let host_ip = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address) {
        "" => None,
        literal => Some(literal.parse().map_err(|_| error("the host's address is none"))?),
    };
    let guests = range(guest).ok_or_else(|| error("the container's port is none"))?;
    let hosts = match host {
        "" => None,
        host => Some(range(host).ok_or_else(|| error("the host's port is none"))?),
    };
    let count = usize::from(guests.1 - guests.0) + 1;
    if count > MAX_PUBLISHED {
        return Err(error(&format!("that is more than {MAX_PUBLISHED} ports")));
    }
    if hosts.is_some_and(|(first, last)| usize::from(last - first) + 1 != count) {
        return Err(error("the two ranges differ in length"));
    }
    let port = |offset: u16| Publish {
        host_ip,
        host_port: hosts.map(|(first, _)| first + offset),
        guest_port: guests.0 + offset,
        transport,
    };
    Ok((0..=guests.1 - guests.0).map(port).collect())
}

/// The ports that an image exposes; what cannot be read is left out.
pub fn exposed(image: &oci_spec::image::Config) -> Vec<(u16, Transport)> {
    let read = |text: &String| {
        let (port, transport) = text.split_once('/').unwrap_or((text, "tcp"));
        Some((port.parse().ok().filter(|port| *port > 0)?, transport.parse().ok()?))
    };
    image.exposed_ports().iter().flatten().filter_map(read).take(MAX_PUBLISHED).collect()
}

/// First and last port of `N` or `N-M`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
}

impl FromStr for Transport {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// As `docker ps` shows it.
impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/{}", self.host, self.guest_port, self.transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_docker_is_read() {
        let one = |text: &str| {
            let Publish { host_ip, host_port, guest_port, transport } = parse(text).unwrap().remove(0);
            (host_ip.map(|ip| ip.to_string()), host_port, guest_port, transport)
        };
        assert_eq!(one("80"), (None, None, 80, Transport::Tcp));
        assert_eq!(one("8080:80/udp"), (None, Some(8080), 80, Transport::Udp));
        assert_eq!(one("127.0.0.1:8080:80"), (Some("127.0.0.1".into()), Some(8080), 80, Transport::Tcp));
        assert_eq!(one("127.0.0.1::80"), (Some("127.0.0.1".into()), None, 80, Transport::Tcp));
        assert_eq!(one("[::1]:8080:80/TCP"), (Some("::1".into()), Some(8080), 80, Transport::Tcp));
        let ports: Vec<_> = parse("8000-8002:90-92").unwrap();
        let pairs: Vec<_> = ports.iter().map(|port| (port.host_port, port.guest_port)).collect();
        assert_eq!(pairs, [(Some(8000), 90), (Some(8001), 91), (Some(8002), 92)]);
    }

    #[test]
    fn what_is_no_port_is_refused_with_its_text() {
        for text in ["", "x", "0", "80/sctp", "1.2.3:80:80", "8000-8001:80", "9-8", "65536", "1-2000", "a:80"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!(parse("1-65535:1-65535").unwrap_err().why, "that is more than 1024 ports");
    }
}
