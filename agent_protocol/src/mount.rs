//! What the agent mounts in the container's root.

use serde::{Deserialize, Serialize};

/// Tag of the file system that holds the shares.
pub const SHARES_TAG: &str = "lighter";

/// The directory with a disk volume's files.
pub const VOLUME_ROOT: &str = "upper";

/// One mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MountPlan {
    /// Where, an absolute path; made if missing.
    pub target: String,
    /// Nobody writes through it.
    pub read_only: bool,
    /// What.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum MountSource {
    /// A directory or file of the host: the entry with this number in the file system [`SHARES_TAG`].
    Share(u16),
    /// A file system on a disk of its own, from its directory [`VOLUME_ROOT`] on.
    Disk {
        /// What the guest calls the disk, for example `/dev/vdd`.
        device: String,
        /// The virtio slot that it is in: looked at again if the device is not there.
        slot: u8,
    },
    /// Memory.
    Tmpfs {
        /// Flags of mount(2).
        flags: u32,
        /// Options of tmpfs(5).
        data: String,
    },
    /// Memory with these files in it.
    Secrets(Vec<Secret>),
}

/// A file that is on no disk.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct Secret {
    /// Its name, without a slash.
    pub name: String,
    /// What it holds.
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
}

/// What it holds goes into no log and no report.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({:?}, {} bytes)", self.name, self.content.len())
    }
}
