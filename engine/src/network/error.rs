//! Why there is no network.

use std::io;
use std::net::SocketAddr;

use super::port::Transport;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// This process may not.
    #[error(
        "this network needs {missing}; or run the container in user mode: --network user, or without a network: \
         --network none"
    )]
    NotPermitted {
        /// What, and how to get it.
        missing: String,
    },
    /// There is no user-mode network here.
    #[error("--network user needs {missing}; or run the container without a network: --network none")]
    NoUserMode {
        /// What, and how to get it.
        missing: String,
    },
    /// Everything overlaps with something.
    #[error(
        "no private IPv4 subnet is free for a bridge: the host has routes to all that lighter tries; choose one \
             with `lighter network create --subnet`"
    )]
    NoSubnet,
    /// The wanted subnet is somebody's.
    #[error(
        "the subnet {subnet} overlaps with {user}; choose another one with `lighter network create --subnet`"
    )]
    SubnetInUse {
        /// The subnet.
        subnet: String,
        /// Whose it is.
        user: String,
    },
    /// Too many containers.
    #[error("all addresses of network {network} ({subnet}) are in use")]
    NoAddress {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// Not in the subnet.
    #[error("the address {address} is none for the subnet {subnet}")]
    Address {
        /// The address.
        address: String,
        /// The subnet.
        subnet: String,
    },
    /// IPv4 and IPv6 address have different numbers.
    #[error("--ip and --ip6 in network {network} have to end in the same number; leave one of them out")]
    Addresses {
        /// The network.
        network: String,
    },
    /// Somebody has it.
    #[error(
        "the address {address} of network {network} is in use; choose another one, or leave it to lighter"
    )]
    AddressTaken {
        /// The address.
        address: String,
        /// The network.
        network: String,
    },
    /// `--ip6` in a network without.
    #[error("network {network} has no IPv6 addresses: make one with `lighter network create --ipv6`")]
    NoIpv6 {
        /// The network.
        network: String,
    },
    /// No name for a network.
    #[error(
        "{0:?} is no name for a network: use 1 to 64 letters, digits, '_', '.' and '-', the first one a letter or \
         digit, and none of bridge, default, none, host, user, container, auto"
    )]
    Name(String),
    /// It exists.
    #[error("there is a network {name} already")]
    Exists {
        /// The network.
        name: String,
    },
    /// It does not exist.
    #[error(
        "there is no network {name:?}: make it with `lighter network create {name}`; `lighter network ls` shows those \
             that there are"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// A container is in it.
    #[error("network {name} is in use by container {container}: stop the container first")]
    InUse {
        /// The network.
        name: String,
        /// The container.
        container: String,
    },
    /// It has no definition.
    #[error("the network bridge is always there and cannot be removed")]
    Default,
    /// A published port is somebody's, or not allowed.
    #[error(
        "cannot publish {host}/{transport} on the host: choose another port with -p; `ss -lntup` shows who has it"
    )]
    Port {
        /// What was wanted.
        host: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
        /// What the kernel said.
        source: io::Error,
    },
    /// What a running container cannot change about its networks.
    #[error("{why}: stop the container first, then change its networks, then start it")]
    Fixed {
        /// Why.
        why: &'static str,
    },
    /// It is not in that network.
    #[error("the container is not in network {network}")]
    NotConnected {
        /// The network.
        network: String,
    },
    /// The host refused something.
    #[error("cannot {action}")]
    Host {
        /// What was attempted.
        action: String,
        /// What the kernel, or a program, said.
        source: io::Error,
    },
}
