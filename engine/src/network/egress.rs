//! `--egress-allow`: where a container may go.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Rules of one container.
pub const MAX_RULES: usize = 256;
/// Longest name (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;

/// One destination that is allowed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    /// Where to.
    pub destination: Destination,
    /// To which TCP or UDP port; `None`: to all, and every other protocol too.
    pub port: Option<u16>,
}

/// Hosts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Destination {
    /// An address range.
    Range(IpAddr, u8),
    /// A name in lower case, with whatever addresses it has when the container asks for them.
    Name(String),
}

/// `--egress-allow` cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "--egress-allow {0:?} is neither a name nor an address: write NAME, ADDRESS or ADDRESS/PREFIX, each with or \
         without :PORT ([ADDRESS]:PORT for IPv6)"
)]
pub struct EgressError(String);

impl FromStr for EgressRule {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let error = || EgressError(text.to_owned());
        let (host, port) = split_port(text).ok_or_else(error)?;
        let destination = range(host).or_else(|| name(host)).ok_or_else(error)?;
        Ok(Self { destination, port })
    }
}

fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(text) => Some((host, Some(port(text)?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    // More than one colon: an IPv6 address, which has its port behind brackets only.
    match text.split_once(':') {
        Some((host, rest)) if !rest.contains(':') => Some((host, Some(port(rest)?))),
        _ => Some((text, None)),
    }
}

fn range(host: &str) -> Option<Destination> {
    let (address, prefix) = match host.split_once('/') {
        Some((address, prefix)) => (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?),
        None => {
            let address = host.parse::<IpAddr>().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= longest).then_some(Destination::Range(address, prefix))
}

fn name(host: &str) -> Option<Destination> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A name of digits alone is an address that somebody mistyped.
    let address_like = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let fits = !address_like && name.len() <= MAX_NAME && name.split('.').all(label);
    fits.then_some(Destination::Name(name))
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.destination, self.port) {
            (Destination::Range(address, prefix), None) => write!(f, "{address}/{prefix}"),
            (Destination::Range(address, prefix), Some(port)) => write!(f, "[{address}/{prefix}]:{port}"),
            (Destination::Name(name), None) => f.write_str(name),
            (Destination::Name(name), Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

impl TryFrom<String> for EgressRule {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> String {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_ranges_come_with_and_without_a_port() {
        let rule = |text: &str| text.parse::<EgressRule>().unwrap();
        assert_eq!(rule("Example.COM.:443").to_string(), "example.com:443");
        assert_eq!(rule("10.0.0.0/8").to_string(), "10.0.0.0/8");
        assert_eq!(rule("10.1.2.3:53").destination, Destination::Range([10, 1, 2, 3].into(), 32));
        assert_eq!(rule("fd00::/8").port, None);
        assert_eq!(rule("[fd00::1]:443").port, Some(443));
        for text in ["example.com:443", "10.0.0.0/8", "10.1.2.3:53", "[fd00::1]:443", "fd00::/8"] {
            assert_eq!(rule(&rule(text).to_string()), rule(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for text in [
            "",
            ":80",
            "a b",
            "10.0.0.0/33",
            "fd00::/129",
            "x:0",
            "x:99999",
            "1.2.3",
            "[fd00::1",
            "[fd00::1]x",
            "a..b",
        ] {
            assert!(text.parse::<EgressRule>().is_err(), "{text}");
        }
    }
}
