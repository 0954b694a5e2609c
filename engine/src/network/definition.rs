//! User-defined networks: one file `networks/NAME.json` each in the data directory.
//!
//! A definition is a description. The bridge itself is made for the first container and removed with the last.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::spec::DEFAULT_NETWORK;
use super::subnet::{self, Subnet, Subnet6};
use super::{NetworkError, host};
use crate::dirs::Dirs;
use crate::lock::Lock;

/// Names that mean something else to `--network`.
const RESERVED: [&str; 7] = [DEFAULT_NETWORK, "default", "none", "host", "user", "container", "auto"];
/// Largest file that is read as a definition.
const MAX_FILE: u64 = 1 << 20;

/// One user-defined network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Seconds since 1970 when it was made.
    pub created: u64,
    /// Addresses of its containers.
    pub subnet: Subnet,
    /// Address of the bridge.
    pub gateway: Ipv4Addr,
    /// IPv6 addresses of its containers.
    #[serde(default)]
    pub subnet6: Option<Subnet6>,
    /// Without a way out.
    #[serde(default)]
    pub internal: bool,
    /// Whatever the user wants to remember.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `lighter network create`
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// `--subnet`, IPv4; chosen where it is missing.
    pub subnet: Option<Subnet>,
    /// `--gateway`; the first address where it is missing.
    pub gateway: Option<Ipv4Addr>,
    /// `--ipv6`
    pub ipv6: bool,
    /// `--subnet`, IPv6; random where it is missing.
    pub subnet6: Option<Subnet6>,
    /// `--internal`
    pub internal: bool,
    /// `--label`
    pub labels: BTreeMap<String, String>,
}

/// All definitions of a data directory.
#[derive(Clone, Debug)]
pub struct Definitions {
    directory: PathBuf,
}

impl Definitions {
    /// Those of `dirs`.
    pub fn new(dirs: &Dirs) -> Self {
        Self { directory: dirs.data.join("networks") }
    }

    /// All of them by name. A file that is no definition is left out.
    pub fn list(&self) -> Vec<Definition> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().filter_map(Result::ok);
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".json").map(str::to_owned)
        });
        let mut found: Vec<_> = names.filter_map(|name| self.find(&name).ok()).collect();
        found.sort_by(|one: &Definition, other| one.name.cmp(&other.name));
        found
    }

    /// The network `name`.
    pub fn find(&self, name: &str) -> Result<Definition, NetworkError> {
        let unknown = || NetworkError::Unknown { name: name.to_owned() };
        if !is_name(name) {
            return Err(unknown());
        }
        let path = self.path(name);
        let text = match path.metadata() {
            Ok(file) if file.len() <= MAX_FILE => std::fs::read_to_string(&path),
            Ok(_) => Err(io::ErrorKind::FileTooLarge.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(error) => Err(error),
        };
        text.and_then(|text| Ok(serde_json::from_str(&text)?))
            .map_err(host(format!("read {}", path.display())))
    }

    /// Makes a network that overlaps with no other one nor with a route of the host.
    pub fn create(&self, new: NewNetwork, created: u64) -> Result<Definition, NetworkError> {
        if !is_name(&new.name) || RESERVED.contains(&new.name.as_str()) {
            return Err(NetworkError::Name(new.name));
        }
        std::fs::create_dir_all(&self.directory)
            .map_err(host(format!("make {}", self.directory.display())))?;
        let _lock =
            Lock::acquire(&self.directory.join("lock")).map_err(host("lock the networks' definitions"))?;
        if self.path(&new.name).exists() {
            return Err(NetworkError::Exists { name: new.name });
        }
        let others = self.list();
        let routes = subnet::host_routes().map_err(host("read the host's routes"))?;
        let subnet = match new.subnet {
            Some(subnet) => self.free(subnet, &others, &routes)?,
            None => {
                let taken: Vec<_> = others.iter().map(|other| other.subnet).chain(routes).collect();
                Subnet::choose_for_user(&taken).ok_or(NetworkError::NoSubnet)?
            }
        };
        let gateway = new.gateway.unwrap_or(subnet.gateway());
        if subnet.number(gateway).is_none() {
            return Err(NetworkError::Address { address: gateway.to_string(), subnet: subnet.to_string() });
        }
        let subnet6 = new.subnet6.or_else(|| new.ipv6.then(Subnet6::random));
        if let (Some(subnet6), Some(other)) = (
            subnet6,
            others.iter().find(|other| {
                other.subnet6.is_some_and(|other| subnet6.is_some_and(|own| own.overlaps(&other)))
            }),
        ) {
            return Err(NetworkError::SubnetInUse {
                subnet: subnet6.to_string(),
                user: format!("network {}", other.name),
            });
        }
        let definition = Definition {
            name: new.name,
            created,
            subnet,
            gateway,
            subnet6,
            internal: new.internal,
            labels: new.labels,
        };
        self.write(&definition).map_err(host(format!("write {}", self.path(&definition.name).display())))?;
        Ok(definition)
    }

    /// Removes the definition of `name`, which nobody uses.
    pub fn remove(&self, name: &str) -> Result<(), NetworkError> {
        self.find(name)?;
        std::fs::remove_file(self.path(name)).map_err(host(format!("remove {}", self.path(name).display())))
    }

    fn free(&self, subnet: Subnet, others: &[Definition], routes: &[Subnet]) -> Result<Subnet, NetworkError> {
        let user = match others.iter().find(|other| other.subnet.overlaps(&subnet)) {
            Some(other) => format!("network {}", other.name),
            None => match routes.iter().find(|route| route.overlaps(&subnet)) {
                Some(route) => format!("the host's route to {route}"),
                None => return Ok(subnet),
            },
        };
        Err(NetworkError::SubnetInUse { subnet: subnet.to_string(), user })
    }

    /// Whole or not at all.
    fn write(&self, definition: &Definition) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer_pretty(&mut file, definition)?;
        file.as_file().sync_all()?;
        file.persist(self.path(&definition.name))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

/// Whether `name` may name a network: as Docker's, at most 64 characters.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions() -> (tempfile::TempDir, Definitions) {
        let base = tempfile::tempdir().unwrap();
        let definitions = Definitions::new(&crate::container::test_dirs(base.path()));
        (base, definitions)
    }

    fn new(name: &str, subnet: Option<&str>) -> NewNetwork {
        NewNetwork {
            name: name.into(),
            subnet: subnet.map(|text| text.parse().unwrap()),
            ..NewNetwork::default()
        }
    }

    #[test]
    fn networks_are_kept_and_do_not_overlap() {
        let (_base, definitions) = definitions();
        let one = definitions.create(new("one", None), 7).unwrap();
        let two = definitions.create(NewNetwork { ipv6: true, ..new("two", None) }, 8).unwrap();
        assert!(!one.subnet.overlaps(&two.subnet) && two.subnet6.is_some() && one.subnet6.is_none());
        assert_eq!(definitions.list(), [one.clone(), two]);
        let error = definitions.create(new("three", Some(&one.subnet.to_string())), 9).unwrap_err();
        assert!(matches!(&error, NetworkError::SubnetInUse { user, .. } if user == "network one"), "{error}");
        assert!(matches!(definitions.create(new("one", None), 9), Err(NetworkError::Exists { .. })));
        definitions.remove("one").unwrap();
        assert!(matches!(definitions.find("one"), Err(NetworkError::Unknown { .. })));
    }

    #[test]
    fn names_that_mean_something_else_and_paths_are_refused() {
        let (_base, definitions) = definitions();
        for name in ["", "bridge", "none", "user", "../x", "a/b", ".hidden", "a b"] {
            assert!(matches!(definitions.create(new(name, None), 0), Err(NetworkError::Name(_))), "{name}");
        }
        assert!(matches!(definitions.find("../x"), Err(NetworkError::Unknown { .. })));
    }

    #[test]
    fn a_gateway_lies_in_its_subnet() {
        let (_base, definitions) = definitions();
        let outside = NewNetwork { gateway: Some([10, 9, 9, 1].into()), ..new("a", Some("172.31.250.0/24")) };
        assert!(matches!(definitions.create(outside, 0), Err(NetworkError::Address { .. })));
    }
}
