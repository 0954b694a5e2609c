//! `/network-interfaces/{id}`, `/vsock`, `/serial` and `/entropy`.

use serde::{Deserialize, Serialize};

use super::{RateLimiter, TokenBucket};

/// `PUT /network-interfaces/{id}`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The one in the path.
    pub iface_id: String,
    /// Name of the TAP interface, or `unix:PATH` for a stream socket as passt and QEMU have it.
    pub host_dev_name: String,
    /// `aa:bb:cc:dd:ee:ff`, of the guest's side.
    pub guest_mac: Option<String>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what it sends.
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{id}`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// The one in the path.
    pub iface_id: String,
    /// Limits of what the guest receives.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what it sends.
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PUT /vsock`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Deprecated, says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// Context ID of the guest, 3 or more.
    pub guest_cid: u32,
    /// Path of the listening socket.
    pub uds_path: String,
}

/// `PUT /serial`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// Where the console goes; standard output without it.
    pub serial_out_path: Option<String>,
    /// Its limits.
    pub rate_limiter: Option<TokenBucket>,
}

/// `PUT /entropy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Its limits.
    pub rate_limiter: Option<RateLimiter>,
}
