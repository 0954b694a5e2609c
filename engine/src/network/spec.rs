//! What a user wants of the network: plain data, kept with the container.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::egress::EgressRule;
use super::permission;
use super::port::{Publish, Transport};

/// Networks that one container may be in: each takes a slot of its machine.
pub const MAX_NETWORKS: usize = 8;
/// The network that containers are in where nothing else is said.
pub const DEFAULT_NETWORK: &str = "bridge";

/// Everything about a container's network.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// `--network`
    pub mode: NetworkMode,
    /// `-p`
    pub publish: Vec<Publish>,
    /// `-P`: also every port that the image exposes.
    pub publish_all: bool,
    /// Ports that the image exposes.
    pub exposed: Vec<(u16, Transport)>,
    /// `--dns`, `--dns-search`, `--dns-option`
    pub dns: DnsSpec,
    /// `--add-host`: address and name.
    pub extra_hosts: Vec<(String, String)>,
    /// `--egress-allow`: `Some` lets only these pass.
    pub egress: Option<Vec<EgressRule>>,
}

impl NetworkSpec {
    /// The same for a copy beside its original: without what only one of them can have, that is ports of the host
    /// and addresses that were asked for.
    pub fn beside(mut self) -> Self {
        (self.publish, self.publish_all) = (Vec::new(), false);
        if let NetworkMode::Bridges(endpoints) = &mut self.mode {
            for endpoint in endpoints {
                (endpoint.ipv4, endpoint.ipv6, endpoint.mac) = (None, None, None);
            }
        }
        self
    }
}

/// `--network`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The default bridge where this process may make one, else a user-mode network, else none.
    #[default]
    Auto,
    /// Loopback only.
    None,
    /// A user-mode network of the container's own.
    User,
    /// Bridges, the first one being `eth0`.
    Bridges(Vec<Endpoint>),
}

/// A container's place in one network.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Endpoint {
    /// The network.
    pub network: String,
    /// `--ip`
    pub ipv4: Option<Ipv4Addr>,
    /// `--ip6`
    pub ipv6: Option<Ipv6Addr>,
    /// `--mac-address`
    pub mac: Option<Mac>,
    /// `--network-alias`
    pub aliases: Vec<String>,
}

/// Where names are asked for. An empty list means what the host has.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct DnsSpec {
    /// Servers.
    pub servers: Vec<IpAddr>,
    /// Domains in which a name without dots is looked for.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

/// A hardware address.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// What a container of a machine sees of its network; machines that differ in it need templates of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interfaces {
    /// None.
    None,
    /// As many interfaces, each a TAP.
    Taps(usize),
    /// One interface behind a user-mode network.
    User,
}

impl Interfaces {
    /// How many there are.
    pub fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::Taps(count) => count,
            Self::User => 1,
        }
    }
}

/// A container cannot be in this network, or not leave it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConnectError {
    /// It is there.
    #[error("the container is in network {0} already")]
    Connected(String),
    /// It is not there.
    #[error("the container is not in network {0}")]
    NotConnected(String),
    /// It has no bridge.
    #[error("the container was made with --network {0}, to which no other network can be added")]
    Mode(&'static str),
    /// Too many.
    #[error("the container is in {MAX_NETWORKS} networks, and there is no room for more")]
    TooMany,
}

impl NetworkSpec {
    /// The spec with `Auto` replaced by what this process may do; the notice says what the user does not get.
    pub fn resolve(&mut self) -> Option<String> {
        if self.mode != NetworkMode::Auto {
            return None;
        }
        let missing = permission::missing();
        if missing.is_empty() {
            self.mode = NetworkMode::bridge(DEFAULT_NETWORK);
            return None;
        }
        let user = permission::missing_for_user_mode();
        self.mode = if user.is_empty() { NetworkMode::User } else { NetworkMode::None };
        (!user.is_empty()).then(|| {
            format!(
                "no network in the container: that needs {}, or {}",
                user.join(" and "),
                missing.join(" and ")
            )
        })
    }

    /// What the machine gets. `Auto` must be resolved.
    pub fn interfaces(&self) -> Interfaces {
        match &self.mode {
            NetworkMode::Auto | NetworkMode::None => Interfaces::None,
            NetworkMode::User => Interfaces::User,
            NetworkMode::Bridges(endpoints) => Interfaces::Taps(endpoints.len()),
        }
    }

    /// Adds a network, for the next start.
    pub fn connect(&mut self, endpoint: Endpoint) -> Result<(), ConnectError> {
        match &mut self.mode {
            NetworkMode::None => self.mode = NetworkMode::Bridges(vec![endpoint]),
            NetworkMode::Auto => {
                self.mode = NetworkMode::bridge(DEFAULT_NETWORK);
                return self.connect(endpoint);
            }
            NetworkMode::User => return Err(ConnectError::Mode("user")),
            NetworkMode::Bridges(endpoints) => {
                if endpoints.iter().any(|other| other.network == endpoint.network) {
                    return Err(ConnectError::Connected(endpoint.network));
                }
                if endpoints.len() >= MAX_NETWORKS {
                    return Err(ConnectError::TooMany);
                }
                endpoints.push(endpoint);
            }
        }
        Ok(())
    }

    /// Removes a network, for the next start.
    pub fn disconnect(&mut self, network: &str) -> Result<(), ConnectError> {
        let NetworkMode::Bridges(endpoints) = &mut self.mode else {
            return Err(ConnectError::NotConnected(network.to_owned()));
        };
        let before = endpoints.len();
        endpoints.retain(|endpoint| endpoint.network != network);
        if endpoints.len() == before {
            return Err(ConnectError::NotConnected(network.to_owned()));
        }
        if endpoints.is_empty() {
            self.mode = NetworkMode::None;
        }
        Ok(())
    }

    /// The networks by name.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        let endpoints = match &self.mode {
            NetworkMode::Bridges(endpoints) => endpoints.as_slice(),
            _ => &[],
        };
        endpoints.iter().map(|endpoint| endpoint.network.as_str())
    }
}

impl NetworkMode {
    /// The bridge `name` and nothing else.
    pub fn bridge(name: &str) -> Self {
        Self::Bridges(vec![Endpoint { network: name.to_owned(), ..Endpoint::default() }])
    }
}

/// As a part of a template's key.
impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Taps(count) => write!(f, "tap {count}"),
            Self::User => f.write_str("user"),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("{text:?} is no hardware address of one station: write it as 02:00:00:00:00:01");
        let bytes: Vec<u8> = text
            .split([':', '-'])
            .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
            .collect::<Option<_>>()
            .ok_or_else(error)?;
        let mac: [u8; 6] = bytes.try_into().map_err(|_| error())?;
        // The lowest bit of the first byte stands for groups.
        if mac[0] & 1 == 1 || mac == [0; 6] { Err(error()) } else { Ok(Self(mac)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_beside_its_original_leaves_ports_and_addresses_to_it() {
        let text = r#"{"mode":{"bridges":[{"network":"n","ipv4":"10.1.0.2","mac":"02:00:00:00:00:01","aliases":["a"]}]},
            "publish_all":true}"#;
        let spec: NetworkSpec = serde_json::from_str(text).unwrap();
        let endpoint = Endpoint { network: "n".into(), aliases: vec!["a".into()], ..Endpoint::default() };
        let expected = NetworkSpec { mode: NetworkMode::Bridges(vec![endpoint]), ..NetworkSpec::default() };
        assert_eq!(spec.beside(), expected);
    }

    #[test]
    fn hardware_addresses_are_of_one_station() {
        assert_eq!("02:00:5e:10:00:0a".parse::<Mac>().unwrap().to_string(), "02:00:5e:10:00:0a");
        for bad in
            ["", "02:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "2:0:0:0:0:1", "02:00:00:00:00:01:02"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_added_and_removed() {
        let mut spec = NetworkSpec { mode: NetworkMode::bridge("a"), ..NetworkSpec::default() };
        let endpoint = |name: &str| Endpoint { network: name.into(), ..Endpoint::default() };
        spec.connect(endpoint("b")).unwrap();
        assert_eq!(spec.networks().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(spec.connect(endpoint("b")), Err(ConnectError::Connected("b".into())));
        assert_eq!(spec.disconnect("c"), Err(ConnectError::NotConnected("c".into())));
        spec.disconnect("a").unwrap();
        spec.disconnect("b").unwrap();
        assert_eq!(spec.mode, NetworkMode::None);
        assert_eq!(
            NetworkSpec { mode: NetworkMode::User, ..spec }.connect(endpoint("a")),
            Err(ConnectError::Mode("user"))
        );
    }

    #[test]
    fn a_spec_survives_its_file() {
        let text =
            r#"{"mode":{"bridges":[{"network":"web","mac":"02:00:00:00:00:01"}]},"publish":[],"unknown":1}"#;
        let spec: NetworkSpec = serde_json::from_str(text).unwrap();
        let again: NetworkSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(spec, again);
        assert!(serde_json::from_str::<NetworkSpec>(r#"{"mode":{"bridges":[{"mac":"x"}]}}"#).is_err());
    }
}
