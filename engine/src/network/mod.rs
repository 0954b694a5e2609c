//! The containers' networks: bridges with NAT, each made for its first container and removed with its last, and
//! networks in user mode for those who may not make bridges.
//!
//! ```text
//! guest eth0 ── TAP ──┐
//! guest eth0 ── TAP ──┴── bridge (gateway) ── nftables: sources, ports, egress, masquerade ── the host's routes
//! guest eth0 ── stream of frames ── passt, as the user ── the host's sockets
//! ```
//!
//! State is in `network/NETNS/NETWORK/` below the run directory, one directory a network namespace and network, see
//! [`bridge`]. A container holds a flock on its address, so one that is killed gives it back, and whoever comes next
//! removes what nobody uses. All changes happen under one lock.

mod attachment;
mod bridge;
mod claim;
pub mod definition;
pub mod egress;
mod error;
mod forwarding;
pub mod guest;
mod links;
mod nft;
pub mod permission;
pub mod port;
mod resolver;
mod rules;
pub mod services;
pub mod spec;
pub mod subnet;
mod tap;
mod user;
mod veth;
pub mod wire;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::container::id::ContainerId;
use crate::dirs::Dirs;
use crate::lock::Lock;
use bridge::{Bridge, Settings};
use definition::{Definition, Definitions};
use guest::Guest;
use rules::BRIDGE_PREFIX;
use spec::{DEFAULT_NETWORK, Interfaces};
use subnet::Subnet;

pub use attachment::{Attachment, Interface, Request};
pub use error::NetworkError;
pub use spec::{NetworkMode, NetworkSpec};

/// The bridge of the run directory that root has by default; others get names of their own.
const DEFAULT_BRIDGE: &str = "lighter0";
/// Run directory to which that name belongs.
const DEFAULT_RUN: &str = "/run/lighter";
/// MTU of every bridge and guest.
const MTU: u32 = 1500;

/// The networks of one installation, in the network namespace of this thread.
#[derive(Clone, Debug)]
pub struct Networks {
    definitions: Definitions,
    run: PathBuf,
    states: PathBuf,
    state: PathBuf,
}

impl Networks {
    /// The networks of `dirs` as seen from here; nothing is made.
    pub fn here(dirs: &Dirs) -> Result<Self, NetworkError> {
        // Of this thread: a process may have threads in several.
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")
            .map_err(host("look at the network namespace in /proc/thread-self/ns/net"))?
            .ino();
        let states = dirs.run.join("network");
        let state = states.join(namespace.to_string());
        Ok(Self { definitions: Definitions::new(dirs), run: dirs.run.clone(), states, state })
    }

    /// The user-defined networks.
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// Name of the bridge of `network`, also of its nftables tables.
    pub fn bridge_name(&self, network: &str) -> String {
        bridge_name(&self.run, network)
    }

    /// Who is in `network` now.
    pub fn guests(&self, network: &str) -> Result<Vec<Guest>, NetworkError> {
        let Some(bridge) = Bridge::load(&self.state.join(network)) else { return Ok(Vec::new()) };
        let _lock = self.lock()?;
        Ok(bridge.guests())
    }

    /// What the default network is made with, while somebody is in it.
    pub fn default_subnet(&self) -> Option<Subnet> {
        Bridge::load(&self.state.join(DEFAULT_NETWORK)).map(|bridge| bridge.settings.subnet)
    }

    /// Removes a user-defined network that nobody is in.
    pub fn remove(&self, name: &str) -> Result<(), NetworkError> {
        if name == DEFAULT_NETWORK {
            return Err(NetworkError::Default);
        }
        let _lock = self.lock()?;
        self.definitions.find(name)?;
        let guests = Bridge::load(&self.state.join(name)).map(|bridge| bridge.guests()).unwrap_or_default();
        if let Some(guest) = guests.into_iter().next() {
            return Err(NetworkError::InUse { name: name.to_owned(), container: guest.name });
        }
        self.definitions.remove(name)
    }

    /// Removes what nobody uses; every command of lighter does it first. Costs next to nothing where there is nothing.
    pub fn sweep(&self) {
        if !self.states.exists() && links::index(&self.bridge_name(DEFAULT_NETWORK)).is_none() {
            return;
        }
        if let Ok(_lock) = self.lock() {
            self.remove_unused();
        }
    }

    fn lock(&self) -> Result<Lock, NetworkError> {
        Lock::acquire(&self.run.join("network.lock")).map_err(host("lock the networks' state"))
    }

    /// The network `name`, made if nobody is in it. The lock is held.
    fn bring_up(&self, name: &str) -> Result<Bridge, NetworkError> {
        let state = self.state.join(name);
        let bridge = match Bridge::load(&state) {
            Some(bridge) if bridge.sweep() && links::index(&bridge.settings.bridge).is_some() => bridge,
            _ => Bridge::set_up(self.settings(name)?, &state)?,
        };
        forwarding::enable(&self.forwarding_memory(), bridge.settings.subnet6.is_some())
            .map_err(host("switch on forwarding in /proc/sys/net"))?;
        Ok(bridge)
    }

    fn settings(&self, name: &str) -> Result<Settings, NetworkError> {
        let bridge = self.bridge_name(name);
        if name == DEFAULT_NETWORK {
            let routes = subnet::host_routes().map_err(host("read the host's routes"))?;
            let others = self.definitions.list().into_iter().map(|other| other.subnet);
            let taken: Vec<_> = routes.into_iter().chain(others).collect();
            let subnet = Subnet::choose(&taken).ok_or(NetworkError::NoSubnet)?;
            let network = name.to_owned();
            let gateway = subnet.gateway();
            return Ok(Settings { network, bridge, subnet, gateway, subnet6: None, internal: false });
        }
        let Definition { name: network, subnet, gateway, subnet6, internal, .. } =
            self.definitions.find(name)?;
        let settings = Settings { network, bridge, subnet, gateway, subnet6, internal };
        let routes = subnet::host_routes().map_err(host("read the host's routes"))?;
        match routes.iter().find(|route| route.overlaps(&subnet)) {
            // Not its own one, which a crash may have left.
            Some(route) if links::index(&settings.bridge).is_none() => Err(NetworkError::SubnetInUse {
                subnet: subnet.to_string(),
                user: format!("the host's route to {route}"),
            }),
            _ => Ok(settings),
        }
    }

    /// The lock is held.
    fn remove_unused(&self) {
        let mut used = false;
        for state in subdirectories(&self.state) {
            match Bridge::load(&state) {
                Some(bridge) if bridge.sweep() => used = true,
                Some(bridge) => bridge.tear_down(),
                None => drop(std::fs::remove_dir_all(&state)),
            }
        }
        if !used {
            // What a crash left before anything was written down.
            let default = self.bridge_name(DEFAULT_NETWORK);
            if links::index(&default).is_some() {
                let _ = nft::run(&rules::Rules::remove(&default)).and_then(|()| links::remove(&default));
            }
            let _ = forwarding::restore(&self.forwarding_memory());
            // Only where it is empty: a network that could not be removed is tried again.
            let _ = std::fs::remove_dir(&self.state);
        }
        // Network namespaces that are gone took their interfaces with them.
        for other in subdirectories(&self.states).into_iter().filter(|other| *other != self.state) {
            if !subdirectories(&other).iter().any(|state| bridge::is_used(state)) {
                let _ = std::fs::remove_dir_all(other);
            }
        }
        let _ = std::fs::remove_dir(&self.states);
    }

    fn forwarding_memory(&self) -> PathBuf {
        self.state.join("forwarding")
    }
}

/// Interfaces for the machine of a template that lead nowhere: the guest finds the devices, and nothing comes
/// through them.
pub fn detached(id: &ContainerId, interfaces: Interfaces) -> Result<Vec<Interface>, NetworkError> {
    match interfaces {
        Interfaces::None => Ok(Vec::new()),
        Interfaces::User => Ok(vec![user::detached().map_err(host("make a socket pair"))?]),
        Interfaces::Taps(count) => (0..count)
            .map(|index| {
                let name = tap_name(id, index);
                let tap = tap::create(&name).map_err(host(format!("make the TAP interface {name}")))?;
                Ok(Interface::tap(tap, detached_mac(index)))
            })
            .collect(),
    }
}

/// Any address will do: each clone gets its own.
fn detached_mac(index: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(index).unwrap_or(u8::MAX)]
}

/// The guest's first interface is `lt` and the container's ID, a further one has its number behind it.
fn tap_name(id: &ContainerId, index: usize) -> String {
    if index == 0 { format!("lt{id}") } else { format!("lt{id}{index}") }
}

fn bridge_name(run: &Path, network: &str) -> String {
    if run == Path::new(DEFAULT_RUN) && network == DEFAULT_NETWORK {
        return DEFAULT_BRIDGE.to_owned();
    }
    use sha2::Digest as _;
    let text = [run.as_os_str().as_encoded_bytes(), b"\0", network.as_bytes()].concat();
    let hash = sha2::Sha256::digest(text);
    let digits: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{BRIDGE_PREFIX}{digits}")
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn host(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Host { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_of_each_run_directory_has_a_bridge_with_a_name_that_linux_takes() {
        assert_eq!(bridge_name(Path::new("/run/lighter"), "bridge"), "lighter0");
        let names = [
            ("/tmp/x/run", "bridge"),
            ("/tmp/y/run", "bridge"),
            ("/tmp/x/run", "web"),
            ("/run/lighter", "web"),
        ];
        let mut names = names.map(|(run, network)| bridge_name(Path::new(run), network)).to_vec();
        assert!(names.iter().all(|name| name.len() <= 15), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4);
        let id = ContainerId::random();
        assert!(tap_name(&id, spec::MAX_NETWORKS - 1).len() <= 15);
    }

    #[test]
    fn without_anything_a_sweep_leaves_no_trace() {
        let base = tempfile::tempdir().unwrap();
        let dirs = crate::container::test_dirs(base.path());
        Networks::here(&dirs).unwrap().sweep();
        assert_eq!(std::fs::read_dir(&dirs.run).unwrap().count(), 0);
    }
}
