//! Networks, volumes and snapshots.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct NetworkView {
    /// Its name.
    pub name: String,
    /// Its bridge on the host.
    pub bridge: String,
    /// Addresses of its containers; the default network's are chosen when it is used.
    pub subnet: Option<String>,
    /// IPv6 addresses of its containers.
    pub subnet6: Option<String>,
    /// Address of the bridge.
    pub gateway: Option<String>,
    /// Without a way out.
    pub internal: bool,
    /// Notes.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Option<String>,
    /// Names of the containers that are in it now.
    pub containers: Vec<String>,
}

/// Networks, by name.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct NetworkList {
    /// They.
    pub items: Vec<NetworkView>,
}

/// A new network.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name.
    pub name: String,
    /// ADDRESS/PREFIX; chosen where nothing is said.
    #[serde(default)]
    pub subnet: Option<String>,
    /// The first address of the subnet where nothing is said.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// With IPv6.
    #[serde(default)]
    pub ipv6: bool,
    /// ADDRESS/PREFIX of IPv6; random where nothing is said.
    #[serde(default)]
    pub subnet6: Option<String>,
    /// Without a way out.
    #[serde(default)]
    pub internal: bool,
    /// Notes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A container for a network.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// Name or ID.
    pub container: String,
    /// Its address there.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address there.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Other names by which it is found there.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// A container to leave a network.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disconnect {
    /// Name or ID.
    pub container: String,
}

/// A volume.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// Where its files are on the host.
    pub mountpoint: String,
    /// When it was made.
    pub created: String,
    /// Notes.
    pub labels: BTreeMap<String, String>,
    /// It was made for one container.
    pub anonymous: bool,
    /// Bytes of its disk, if it is a disk of its own.
    pub disk_bytes: Option<u64>,
    /// Names of the containers that have it.
    pub containers: Vec<String>,
}

/// Volumes, by name.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct VolumeList {
    /// They.
    pub items: Vec<VolumeView>,
}

/// A new volume.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateVolume {
    /// Its name; drawn where nothing is said.
    pub name: Option<String>,
    /// Make a disk of its own of so many bytes, for one container at a time.
    pub disk_bytes: Option<u64>,
    /// Notes.
    pub labels: BTreeMap<String, String>,
}

/// Volumes to remove.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneVolumes {
    /// Also those with a name.
    pub all: bool,
}

/// What was removed.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Pruned {
    /// Names or IDs.
    pub removed: Vec<String>,
}

/// A snapshot.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct SnapshotView {
    /// Its name.
    pub name: String,
    /// Name of the container then.
    pub container: String,
    /// The container's image.
    pub image: String,
    /// When it was made.
    pub created: String,
    /// For how long the container stood still, in milliseconds.
    pub paused_ms: f64,
    /// Bytes on the disk.
    pub size: u64,
}

/// Snapshots, oldest first.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct SnapshotList {
    /// They.
    pub items: Vec<SnapshotView>,
}

/// A new snapshot.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Name or ID of a container that runs.
    pub container: String,
    /// Name of the snapshot; the container's where nothing is said.
    #[serde(default)]
    pub name: Option<String>,
}

/// Going on from a snapshot.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restore {
    /// Name of the new container.
    pub name: Option<String>,
}

/// A snapshot's way to a registry.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PushSnapshot {
    /// REGISTRY/NAME:TAG
    pub reference: String,
    /// Do not insist on HTTPS with a valid certificate.
    #[serde(default)]
    pub insecure: bool,
}

/// A snapshot's way from a registry.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PullSnapshot {
    /// REGISTRY/NAME:TAG
    pub reference: String,
    /// Its name here.
    pub name: String,
    /// Do not insist on HTTPS with a valid certificate.
    #[serde(default)]
    pub insecure: bool,
}
