//! A container's place in one network, as everyone who shares the network reads it: the content of its lease file.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::egress::EgressRule;
use super::port::Published;
use super::spec::Mac;

/// Largest lease file that is read.
const MAX_FILE: u64 = 1 << 20;

/// One container in one network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Guest {
    /// ID of the container.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Other names by which it is found.
    pub aliases: Vec<String>,
    /// Its interface on the host.
    pub tap: String,
    /// Its hardware address.
    pub mac: Mac,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Its other address.
    pub ipv6: Option<Ipv6Addr>,
    /// What the host offers of it.
    pub ports: Vec<Published>,
    /// Where it may go, if not everywhere.
    pub egress: Option<Egress>,
}

/// What limits a container's way out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Egress {
    /// Where it may go.
    pub rules: Vec<EgressRule>,
    /// Netlink group in which denials are told.
    pub log_group: u16,
}

impl Guest {
    /// Reads the lease `path`; `None` where there is none yet, or none any more.
    pub fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes it into the lease `path`, which stays the same file: its holder has locked it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).open(path)?;
        let text = serde_json::to_vec(self)?;
        file.write_all(&text)?;
        let end = file.stream_position()?;
        file.set_len(end)
    }

    /// All names by which it is found.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [self.name.as_str(), self.container.as_str()]
            .into_iter()
            .chain(self.aliases.iter().map(String::as_str))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A guest for tests.
    pub fn guest() -> Guest {
        Guest {
            container: "0123456789ab".into(),
            name: "barge".into(),
            aliases: vec!["db".into()],
            tap: "lt0123456789ab".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            ipv4: [10, 77, 0, 2].into(),
            ipv6: None,
            ports: Vec::new(),
            egress: None,
        }
    }

    #[test]
    fn a_lease_can_be_written_again_and_garbage_is_no_guest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x".repeat(2000)).unwrap();
        assert_eq!(Guest::read(file.path()), None);
        guest().write(file.path()).unwrap();
        assert_eq!(Guest::read(file.path()), Some(guest()));
        assert_eq!(guest().names().collect::<Vec<_>>(), ["barge", "0123456789ab", "db"]);
    }
}
