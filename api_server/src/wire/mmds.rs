//! `/mmds/config`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// How a guest asks for its metadata.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum MmdsVersion {
    /// With a plain GET. Deprecated.
    #[default]
    V1,
    /// With a session token.
    V2,
}

/// `PUT /mmds/config`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// How a guest asks.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Interfaces on which it may ask.
    pub network_interfaces: Vec<String>,
    /// Where it asks, link-local; 169.254.169.254 without it.
    pub ipv4_address: Option<Ipv4Addr>,
    /// Answer as EC2's service does, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}
