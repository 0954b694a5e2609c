//! One live network: its bridge, its rules, and who is in it.
//!
//! Its state is a directory: `settings.json` says what it was made with, `leases/N` is address number N of its subnet,
//! locked by whoever has it, with the [`Guest`] in it. All changes happen under the networks' lock.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::guest::Guest;
use super::rules::Rules;
use super::spec::{Endpoint, Mac};
use super::subnet::{Subnet, Subnet6};
use super::{NetworkError, host, links, nft};
use crate::lock::Lock;

/// What a network is made with.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Settings {
    /// The user's name for it.
    pub network: String,
    /// The bridge, also the name of its tables.
    pub bridge: String,
    /// IPv4 addresses.
    pub subnet: Subnet,
    /// The bridge's own.
    pub gateway: Ipv4Addr,
    /// IPv6 addresses.
    pub subnet6: Option<Subnet6>,
    /// Without a way out.
    pub internal: bool,
}

/// A live network in its state directory.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// What it was made with.
    pub settings: Settings,
    state: PathBuf,
}

/// An address that is ours as long as this lives.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    _lock: Lock,
    /// Its number in the subnet.
    pub number: u32,
    /// The address.
    pub ipv4: Ipv4Addr,
}

impl Bridge {
    /// The network in the state directory `state`, if it was made.
    pub fn load(state: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(state.join("settings.json")).ok()?;
        Some(Self { settings: serde_json::from_str(&text).ok()?, state: state.to_owned() })
    }

    /// Makes it anew, over whatever a crash may have left.
    pub fn set_up(settings: Settings, state: &Path) -> Result<Self, NetworkError> {
        let bridge = Self { settings, state: state.to_owned() };
        if state.exists() || links::index(&bridge.settings.bridge).is_some() {
            bridge.tear_down();
        }
        let leases = state.join("leases");
        std::fs::create_dir_all(&leases).map_err(host(format!("make {}", leases.display())))?;
        let text = serde_json::to_vec(&bridge.settings)
            .map_err(|error| host("write the network's settings")(error.into()))?;
        std::fs::write(state.join("settings.json"), text)
            .map_err(host(format!("write {}", state.display())))?;
        let Settings { bridge: device, gateway, subnet, .. } = &bridge.settings;
        let six = bridge.gateway6().map(|(address, prefix)| (IpAddr::V6(address), prefix));
        let addresses: Vec<_> = std::iter::once((IpAddr::V4(*gateway), subnet.prefix())).chain(six).collect();
        // The bridge first: a table without it would be no reason for a sweep to look further.
        links::create_bridge(device, mac_of(*gateway).0, &addresses)
            .map_err(host(format!("make the bridge {device}")))?;
        nft::run(&bridge.rules().install())
            .map_err(host(format!("set up NAT in the nftables table {device}")))?;
        Ok(bridge)
    }

    /// Its packet filter.
    pub fn rules(&self) -> Rules<'_> {
        let Settings { bridge, subnet, subnet6, internal, .. } = &self.settings;
        Rules { bridge, subnet: *subnet, subnet6: *subnet6, internal: *internal }
    }

    /// The bridge's IPv6 address and prefix length.
    pub fn gateway6(&self) -> Option<(Ipv6Addr, u8)> {
        let number = self.settings.subnet.number(self.settings.gateway)?;
        self.settings.subnet6.map(|subnet| (subnet.host(number), subnet.prefix()))
    }

    /// The address that `endpoint` asks for, or a free one.
    pub fn lease(&self, endpoint: &Endpoint) -> Result<Lease, NetworkError> {
        let Settings { subnet, subnet6, gateway, network, .. } = &self.settings;
        let outside =
            |address: IpAddr, subnet: String| NetworkError::Address { address: address.to_string(), subnet };
        let by_four = match endpoint.ipv4 {
            Some(address) => {
                Some(subnet.number(address).ok_or_else(|| outside(address.into(), subnet.to_string()))?)
            }
            None => None,
        };
        let by_six = match (endpoint.ipv6, subnet6) {
            (Some(address), Some(subnet6)) => {
                let number = subnet6.number(address).filter(|number| self.ipv4(*number).is_some());
                Some(number.ok_or_else(|| outside(address.into(), subnet6.to_string()))?)
            }
            (Some(_), None) => return Err(NetworkError::NoIpv6 { network: network.clone() }),
            (None, _) => None,
        };
        if let (Some(four), Some(six)) = (by_four, by_six)
            && four != six
        {
            return Err(NetworkError::Addresses { network: network.clone() });
        }
        if let Some(number) = by_four.or(by_six) {
            let address = self.ipv4(number).filter(|address| address != gateway);
            let taken = || NetworkError::AddressTaken {
                address: endpoint.ipv4.map_or_else(|| format!("number {number}"), |ip| ip.to_string()),
                network: network.clone(),
            };
            let address = address.ok_or_else(taken)?;
            return self.try_lease(number, address)?.ok_or_else(taken);
        }
        for (number, address) in subnet.hosts().filter(|(_, address)| address != gateway) {
            if let Some(lease) = self.try_lease(number, address)? {
                return Ok(lease);
            }
        }
        Err(NetworkError::NoAddress { network: network.clone(), subnet: subnet.to_string() })
    }

    fn ipv4(&self, number: u32) -> Option<Ipv4Addr> {
        self.settings
            .subnet
            .hosts()
            .nth(usize::try_from(number.checked_sub(1)?).ok()?)
            .map(|(_, address)| address)
    }

    fn try_lease(&self, number: u32, ipv4: Ipv4Addr) -> Result<Option<Lease>, NetworkError> {
        let path = self.state.join("leases").join(number.to_string());
        let lock = Lock::try_acquire(&path).map_err(host(format!("lease {ipv4}")))?;
        Ok(lock.map(|lock| Lease { path, _lock: lock, number, ipv4 }))
    }

    /// Lets `guest` in through the interface that `make` makes under a name, and gives what that gives.
    pub fn plug_in<T>(
        &self,
        guest: &Guest,
        lease: &Lease,
        make: impl FnOnce(&str) -> io::Result<T>,
    ) -> Result<T, NetworkError> {
        let Guest { tap, .. } = guest;
        guest.write(&lease.path).map_err(host(format!("write {}", lease.path.display())))?;
        let script = self.rules().add(guest);
        let running = nft::start(&script);
        // The interface comes into the network only when its rules are there.
        let made = make(tap).map_err(host(format!("make the interface {tap}")));
        if let Err(first) = running.and_then(nft::Running::finish) {
            // Something that a crash left is in the way: without it, then.
            self.renew().map_err(|_| {
                host(format!("add rules to the nftables table {}", self.settings.bridge))(first)
            })?;
        }
        let made = made?;
        links::attach(tap, &self.settings.bridge)
            .map_err(host(format!("plug {tap} into the bridge {}", self.settings.bridge)))?;
        Ok(made)
    }

    /// Changes the rules by `script`.
    pub fn change(&self, script: &str) -> io::Result<()> {
        nft::run(script)
    }

    /// Makes the tables anew, with those guests that live.
    fn renew(&self) -> io::Result<()> {
        let rules = self.rules();
        let mut script = Rules::remove(&self.settings.bridge) + &rules.install();
        for guest in self.guests() {
            script += &rules.add(&guest);
        }
        nft::run(&script)
    }

    /// Everyone of whom there is a lease, maybe somebody who just died: no lock is taken, so nobody is disturbed.
    pub fn listed(&self) -> Vec<Guest> {
        lease_files(&self.state).iter().filter_map(|path| Guest::read(path)).collect()
    }

    /// Whoever is in it now. The networks' lock is held.
    pub fn guests(&self) -> Vec<Guest> {
        let held = |path: &PathBuf| !matches!(Lock::try_acquire(path), Ok(Some(_)));
        let mut guests: Vec<_> =
            lease_files(&self.state).into_iter().filter(held).filter_map(|path| Guest::read(&path)).collect();
        guests.sort_by_key(|guest| guest.ipv4);
        guests
    }

    /// Gives a lease back, and everything of its guest.
    pub fn leave(&self, lease: Lease) {
        self.forget(&lease.path);
        let _ = std::fs::remove_file(&lease.path);
    }

    /// Removes what the dead left; false if nobody is in it any more.
    pub fn sweep(&self) -> bool {
        let mut used = false;
        for path in lease_files(&self.state) {
            match Lock::try_acquire(&path) {
                Ok(Some(_lock)) => {
                    self.forget(&path);
                    let _ = std::fs::remove_file(&path);
                }
                Ok(None) | Err(_) => used = true,
            }
        }
        used
    }

    /// Best effort: rules about a TAP that is gone do nothing, and what is in somebody's way is removed then.
    fn forget(&self, lease: &Path) {
        if let Some(guest) = Guest::read(lease) {
            let _ = nft::run(&self.rules().forget(&guest));
        }
    }

    /// Removes it. Best effort: what stays is found again by the next sweep, as long as the state is there.
    pub fn tear_down(&self) {
        let device = &self.settings.bridge;
        let removed = nft::run(&Rules::remove(device)).and_then(|()| links::remove(device));
        if removed.is_ok() {
            let _ = std::fs::remove_dir_all(&self.state);
        }
    }
}

/// Whether anybody holds a lease below `state`.
pub fn is_used(state: &Path) -> bool {
    lease_files(state).iter().any(|path| !matches!(Lock::try_acquire(path), Ok(Some(_))))
}

/// A locally administered address that goes with the IP address: whoever gets it next has the same one, so no
/// neighbour has a wrong one in mind.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x6c, a, b, c, d])
}

fn lease_files(state: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state.join("leases")).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(base: &Path) -> Bridge {
        std::fs::create_dir_all(base.join("leases")).unwrap();
        let settings = Settings {
            network: "web".into(),
            bridge: "lighter0".into(),
            subnet: "10.77.0.0/29".parse().unwrap(),
            gateway: [10, 77, 0, 1].into(),
            subnet6: Some("fd00::/64".parse().unwrap()),
            internal: false,
        };
        Bridge { settings, state: base.to_owned() }
    }

    #[test]
    fn addresses_are_given_once_and_again_when_they_are_free() {
        let base = tempfile::tempdir().unwrap();
        let bridge = bridge(base.path());
        let first = bridge.lease(&Endpoint::default()).unwrap();
        let _held: Vec<_> = (0..4).map(|_| bridge.lease(&Endpoint::default()).unwrap()).collect();
        assert_eq!(first.ipv4, Ipv4Addr::new(10, 77, 0, 2));
        assert!(matches!(bridge.lease(&Endpoint::default()), Err(NetworkError::NoAddress { .. })));
        drop(first);
        assert!(bridge.sweep());
        assert_eq!(bridge.lease(&Endpoint::default()).unwrap().ipv4, Ipv4Addr::new(10, 77, 0, 2));
    }

    #[test]
    fn an_address_may_be_asked_for_if_it_is_free_and_inside() {
        let base = tempfile::tempdir().unwrap();
        let bridge = bridge(base.path());
        let ask = |ipv4: Option<[u8; 4]>, ipv6: Option<&str>| {
            let ipv6 = ipv6.map(|text| text.parse().unwrap());
            bridge.lease(&Endpoint { ipv4: ipv4.map(Ipv4Addr::from), ipv6, ..Endpoint::default() })
        };
        let held = ask(Some([10, 77, 0, 4]), Some("fd00::4")).unwrap();
        assert!(matches!(ask(Some([10, 77, 0, 4]), None), Err(NetworkError::AddressTaken { .. })));
        assert!(matches!(ask(None, Some("fd00::4")), Err(NetworkError::AddressTaken { .. })));
        assert!(
            matches!(ask(Some([10, 77, 0, 1]), None), Err(NetworkError::AddressTaken { .. })),
            "the gateway's"
        );
        assert!(matches!(ask(Some([10, 78, 0, 4]), None), Err(NetworkError::Address { .. })));
        assert!(matches!(ask(None, Some("fd00::ffff")), Err(NetworkError::Address { .. })));
        assert!(matches!(ask(Some([10, 77, 0, 3]), Some("fd00::5")), Err(NetworkError::Addresses { .. })));
        drop(held);
        assert_eq!(ask(None, Some("fd00::6")).unwrap().ipv4, Ipv4Addr::new(10, 77, 0, 6));
    }
}
