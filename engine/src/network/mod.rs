//! The containers' network: a bridge with NAT, made for the first container and removed with the last.
//!
//! ```text
//! guest eth0 ── TAP ──┐
//! guest eth0 ── TAP ──┴── bridge lighter0 (gateway) ── nftables: masquerade ── the host's routes
//! ```
//!
//! State is in `network/NETNS/` below the run directory, one directory a network namespace: the subnet, whether
//! forwarding was off, and one file per leased address on which its user holds a flock. So a user that is killed
//! gives its address back, and whoever comes next removes what nobody uses. All changes happen under one lock.

mod forwarding;
mod links;
mod nat;
pub mod permission;
mod resolver;
mod subnet;
mod tap;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agent_protocol::message::NetworkPlan;

use crate::container::id::{ContainerId, random};
use crate::dirs::Dirs;
use crate::lock::Lock;
use subnet::Subnet;

/// The bridge of the run directory that root has by default; others get a name of their own.
const DEFAULT_BRIDGE: &str = "lighter0";
/// Run directory to which that name belongs.
const DEFAULT_RUN: &str = "/run/lighter";
/// MTU of the bridge and of every guest.
const MTU: u32 = 1500;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// This process may not.
    #[error("--network bridge needs {missing}; or run the container without a network: --network none")]
    NotPermitted {
        /// What, and how to get it.
        missing: String,
    },
    /// Everything overlaps with something.
    #[error("no private IPv4 subnet is free for the bridge: the host has routes to all that lighter tries")]
    NoSubnet,
    /// Too many containers.
    #[error("all {count} addresses of the bridge's subnet {subnet} are in use")]
    NoAddress {
        /// How many there are.
        count: usize,
        /// Of this subnet.
        subnet: String,
    },
    /// The host refused something.
    #[error("cannot {action}")]
    Host {
        /// What was attempted.
        action: String,
        /// What the kernel, or nft, said.
        source: io::Error,
    },
}

/// The bridge of one run directory, in the network namespace of this thread.
#[derive(Clone, Debug)]
pub struct Network {
    bridge: String,
    lock: PathBuf,
    states: PathBuf,
    state: PathBuf,
}

/// A container's place on the bridge, given back on drop. The machine must have ended by then.
#[derive(Debug)]
pub struct Attachment {
    network: Network,
    tap: Option<OwnedFd>,
    lease: Option<(PathBuf, Lock)>,
    /// MAC address of the guest's side.
    pub mac: [u8; 6],
    /// What the guest must know.
    pub plan: NetworkPlan,
}

impl Network {
    /// The network of `dirs` as seen from here; nothing is made.
    pub fn here(dirs: &Dirs) -> Result<Self, NetworkError> {
        // Of this thread: a process may have threads in several.
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")
            .map_err(host("look at the network namespace in /proc/thread-self/ns/net"))?
            .ino();
        let states = dirs.run.join("network");
        let state = states.join(namespace.to_string());
        Ok(Self { bridge: bridge_name(&dirs.run), lock: dirs.run.join("network.lock"), states, state })
    }

    /// Name of the bridge, also of the nftables table.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Plugs container `id` in. `dns` replaces the host's name servers.
    pub fn attach(&self, id: &ContainerId, dns: &[IpAddr]) -> Result<Attachment, NetworkError> {
        let missing = permission::missing();
        if !missing.is_empty() {
            return Err(NetworkError::NotPermitted { missing: missing.join(" and ") });
        }
        let _lock = Lock::acquire(&self.lock).map_err(host("lock the network's state"))?;
        let plugged = self.plug_in(id, dns);
        if plugged.is_err() {
            self.remove_unused();
        }
        plugged
    }

    /// An interface for machine `id` that leads nowhere: the guest finds the device, and nothing comes through it.
    pub fn detached(id: &ContainerId) -> Result<OwnedFd, NetworkError> {
        let name = format!("lt{id}");
        tap::create(&name).map_err(host(format!("make the TAP interface {name}")))
    }

    /// Removes what nobody uses; every command of lighter does it first. Costs next to nothing where there is nothing.
    pub fn sweep(&self) {
        if !self.states.exists() && links::index(&self.bridge).is_none() {
            return;
        }
        if let Ok(_lock) = Lock::acquire(&self.lock) {
            self.remove_unused();
        }
    }

    /// The lock is held.
    fn plug_in(&self, id: &ContainerId, dns: &[IpAddr]) -> Result<Attachment, NetworkError> {
        let subnet = match self.subnet_in_use() {
            Some(subnet) => subnet,
            None => self.set_up()?,
        };
        let (address, lease) = self.lease(&subnet)?;
        let name = format!("lt{id}");
        let tap = tap::create(&name).map_err(host(format!("make the TAP interface {name}")))?;
        links::attach(&name, &self.bridge)
            .map_err(host(format!("plug {name} into the bridge {}", self.bridge)))?;
        let mac = random_mac();
        let plan = NetworkPlan {
            mac,
            ipv4: Some((address, subnet.prefix())),
            gateway_v4: Some(subnet.gateway()),
            ipv6: None,
            gateway_v6: None,
            mtu: MTU,
            resolv_conf: resolver::resolv_conf(dns),
            extra_hosts: Vec::new(),
        };
        Ok(Attachment { network: self.clone(), tap: Some(tap), lease: Some(lease), mac, plan })
    }

    /// The subnet of a bridge that somebody uses.
    fn subnet_in_use(&self) -> Option<Subnet> {
        let used = self.live_leases(&self.state) > 0 && links::index(&self.bridge).is_some();
        let text = std::fs::read_to_string(self.state.join("subnet")).ok();
        text.filter(|_| used)?.parse().ok()
    }

    /// Makes everything anew, over whatever a crash may have left.
    fn set_up(&self) -> Result<Subnet, NetworkError> {
        self.tear_down();
        let leases = self.state.join("leases");
        std::fs::create_dir_all(&leases).map_err(host(format!("make {}", leases.display())))?;
        let routes =
            std::fs::read_to_string("/proc/thread-self/net/route").map_err(host("read the host's routes"))?;
        let subnet = Subnet::choose(&subnet::routes(&routes)).ok_or(NetworkError::NoSubnet)?;
        std::fs::write(self.state.join("subnet"), subnet.to_string())
            .map_err(host(format!("write {}", self.state.display())))?;
        links::create_bridge(&self.bridge, random_mac(), &subnet)
            .map_err(host(format!("make the bridge {}", self.bridge)))?;
        nat::install(&self.bridge, &subnet)
            .map_err(host(format!("set up NAT in the nftables table {}", self.bridge)))?;
        forwarding::enable(&self.forwarding_memory())
            .map_err(host("switch on IPv4 forwarding in /proc/sys/net/ipv4/ip_forward"))?;
        Ok(subnet)
    }

    fn lease(&self, subnet: &Subnet) -> Result<(Ipv4Addr, (PathBuf, Lock)), NetworkError> {
        for (number, address) in subnet.hosts() {
            let path = self.state.join("leases").join(number.to_string());
            let lock = Lock::try_acquire(&path).map_err(host(format!("lease {address}")))?;
            if let Some(lock) = lock {
                return Ok((address, (path, lock)));
            }
        }
        Err(NetworkError::NoAddress { count: subnet.hosts().count(), subnet: subnet.to_string() })
    }

    /// Removes the leases below `state` that nobody holds, and counts the others.
    fn live_leases(&self, state: &Path) -> usize {
        let entries = std::fs::read_dir(state.join("leases")).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths
            .filter(|path| match Lock::try_acquire(path) {
                Ok(Some(_lock)) => std::fs::remove_file(path).is_err(),
                Ok(None) | Err(_) => true,
            })
            .count()
    }

    /// The lock is held.
    fn remove_unused(&self) {
        if self.live_leases(&self.state) == 0 {
            self.tear_down();
        }
        // Network namespaces that are gone took their interfaces with them.
        for entry in std::fs::read_dir(&self.states).into_iter().flatten().filter_map(Result::ok) {
            if self.live_leases(&entry.path()) == 0 {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        // Only where it is empty.
        let _ = std::fs::remove_dir(&self.states);
    }

    /// Best effort: what stays is found again by the next sweep, as long as the bridge or the state is there.
    fn tear_down(&self) {
        if links::index(&self.bridge).is_none() && !self.state.exists() {
            return;
        }
        let _ = forwarding::restore(&self.forwarding_memory());
        let removed = nat::remove(&self.bridge).and_then(|()| links::remove(&self.bridge));
        if removed.is_ok() {
            let _ = std::fs::remove_dir_all(&self.state);
        }
    }

    fn forwarding_memory(&self) -> PathBuf {
        self.state.join("forwarding-was-off")
    }
}

impl Attachment {
    /// The guest's TAP, for the machine to inherit.
    pub fn tap(&self) -> Option<&OwnedFd> {
        self.tap.as_ref()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.tap = None;
        let Ok(_lock) = Lock::acquire(&self.network.lock) else { return };
        if let Some((path, lease)) = self.lease.take() {
            let _ = std::fs::remove_file(path);
            drop(lease);
        }
        self.network.remove_unused();
    }
}

fn bridge_name(run: &Path) -> String {
    if run == Path::new(DEFAULT_RUN) {
        return DEFAULT_BRIDGE.to_owned();
    }
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(run.as_os_str().as_encoded_bytes());
    let digits: String = hash.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    format!("lighter{digits}")
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, ..] = random();
    [0x02, a, b, c, d, e]
}

fn host(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Host { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_directory_has_a_bridge_of_its_own_with_a_name_that_linux_takes() {
        assert_eq!(bridge_name(Path::new("/run/lighter")), "lighter0");
        let other = bridge_name(Path::new("/tmp/x/run"));
        assert!(other.len() <= 15 && other != bridge_name(Path::new("/tmp/y/run")), "{other}");
    }

    #[test]
    fn leases_of_the_dead_are_free_again() {
        let base = tempfile::tempdir().unwrap();
        let dirs = crate::container::test_dirs(base.path());
        let network = Network::here(&dirs).unwrap();
        std::fs::create_dir_all(network.state.join("leases")).unwrap();
        let subnet: Subnet = "10.77.0.0/24".parse().unwrap();
        let (first, lease) = network.lease(&subnet).unwrap();
        let (second, _held) = network.lease(&subnet).unwrap();
        assert_eq!((first, second), (Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)));
        drop(lease);
        assert_eq!(network.live_leases(&network.state), 1);
        assert_eq!(network.lease(&subnet).unwrap().0, first);
    }

    #[test]
    fn without_anything_a_sweep_leaves_no_trace() {
        let base = tempfile::tempdir().unwrap();
        let dirs = crate::container::test_dirs(base.path());
        Network::here(&dirs).unwrap().sweep();
        assert!(!dirs.run.join("network").exists() && !dirs.run.join("network.lock").exists());
    }
}
