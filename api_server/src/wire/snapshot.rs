//! `/snapshot/create` and `/snapshot/load`.

use serde::Deserialize;

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum SnapshotType {
    /// What was written since the one before.
    Diff,
    /// All.
    #[default]
    Full,
}

/// `PUT /snapshot/create`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// What it holds.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// File of the VM's state.
    pub snapshot_path: String,
    /// File of its memory.
    pub mem_file_path: String,
}

/// Who gives the memory of a loaded snapshot.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum MemBackendType {
    /// A file.
    File,
    /// A process that handles page faults.
    Uffd,
}

/// Where the memory of a loaded snapshot comes from.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// File, or Unix socket of the process.
    pub backend_path: String,
    /// Which of them.
    pub backend_type: MemBackendType,
}

/// Another TAP for an interface.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: String,
    /// See [`super::NetworkInterface::host_dev_name`].
    pub host_dev_name: String,
}

/// Another socket for the vsock device.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// Its path.
    pub uds_path: String,
}

/// Pages behind the memory of a loaded snapshot.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum LoadHugePages {
    /// Those of the saved VM.
    #[default]
    Snapshot,
    /// Pages of 4 KiB.
    None,
    /// What the host's kernel makes of it.
    Transparent,
    /// From hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// `PUT /snapshot/load`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// File of the VM's state.
    pub snapshot_path: String,
    /// File of its memory. Deprecated: `mem_backend` says the same.
    pub mem_file_path: Option<String>,
    /// Where its memory is.
    pub mem_backend: Option<MemBackend>,
    /// Deprecated: `track_dirty_pages` says the same.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// Differential snapshots are wanted.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Run it at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other TAPs.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket.
    pub vsock_override: Option<VsockOverride>,
    /// Let the guest's wall clock go on as the host's did.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Pages behind the memory.
    #[serde(default)]
    pub huge_pages: LoadHugePages,
}
