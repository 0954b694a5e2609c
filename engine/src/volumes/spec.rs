//! A container's mounts, as they were asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent_protocol::mount::{MountPlan, MountSource};
use serde::{Deserialize, Serialize};
use shares::Share;

use super::{VolumeError, VolumeStore};

/// Something that is mounted in a container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct MountSpec {
    /// What.
    #[serde(flatten)]
    pub kind: MountKind,
    /// Where in the container: absolute, without `.`, `..` and double slashes.
    pub target: String,
    /// Nobody writes through it.
    #[serde(default)]
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum MountKind {
    /// A directory or file of the host.
    Bind {
        /// Its path there, absolute; links were resolved when the container was made.
        source: PathBuf,
    },
    /// A volume, made when it is first needed.
    Volume {
        /// Its name; empty until one is drawn for it.
        name: String,
        /// It is this container's only, and goes with it where that is asked for.
        #[serde(default)]
        anonymous: bool,
        /// An empty one gets what the image has at its place.
        #[serde(default)]
        copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Flags of mount(2).
        flags: u32,
        /// Options of tmpfs(5).
        data: String,
    },
    /// Files in memory, see [`super::secret`].
    Secrets {
        /// What each is called, and where it is read.
        files: BTreeMap<String, PathBuf>,
    },
}

impl MountSpec {
    /// What is in it is not the machine's own.
    pub fn is_outside(&self) -> bool {
        !matches!(self.kind, MountKind::Tmpfs { .. } | MountKind::Secrets { .. })
    }

    /// Another process has to serve it.
    pub fn is_share(&self, store: &VolumeStore) -> bool {
        self.source(store).is_some()
    }

    /// What is served of the host.
    fn source(&self, store: &VolumeStore) -> Option<PathBuf> {
        match &self.kind {
            MountKind::Bind { source } => Some(source.clone()),
            MountKind::Volume { name, .. } if store.disk(name).is_none() => Some(store.content(name)),
            MountKind::Volume { .. } | MountKind::Tmpfs { .. } | MountKind::Secrets { .. } => None,
        }
    }
}

/// Where the guest finds the volumes that are disks, in their order.
#[derive(Clone, Debug, Default)]
pub struct DiskPlaces(pub Vec<(String, u8)>);

/// What the file server serves for `mounts`: one share for each that needs one, in their order.
pub fn shares(mounts: &[MountSpec], store: &VolumeStore) -> Vec<Share> {
    let share = |mount: &MountSpec| Some(Share { source: mount.source(store)?, read_only: mount.read_only });
    mounts.iter().filter_map(share).collect()
}

/// What the agent mounts, with the secrets as they are now. Outer places come before inner ones.
pub fn plan(
    mounts: &[MountSpec],
    store: &VolumeStore,
    disks: &DiskPlaces,
) -> Result<Vec<MountPlan>, VolumeError> {
    let (mut number, mut disks) = (0, disks.0.iter());
    let mut plans = mounts
        .iter()
        .map(|mount| {
            let source = match &mount.kind {
                MountKind::Secrets { files } => MountSource::Secrets(super::secret::read(files)?),
                MountKind::Tmpfs { flags, data } => MountSource::Tmpfs { flags: *flags, data: data.clone() },
                _ if mount.is_share(store) => {
                    number += 1;
                    MountSource::Share(number - 1)
                }
                MountKind::Bind { .. } | MountKind::Volume { .. } => {
                    let (device, slot) = disks.next().cloned().unwrap_or_default();
                    MountSource::Disk { device, slot }
                }
            };
            Ok(MountPlan { target: mount.target.clone(), read_only: mount.read_only, source })
        })
        .collect::<Result<Vec<_>, VolumeError>>()?;
    plans.sort_by_key(|plan| plan.target.matches('/').count());
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::test_dirs;

    #[test]
    fn shares_keep_their_numbers_while_outer_places_are_mounted_first() {
        let base = tempfile::tempdir().unwrap();
        let store = VolumeStore::new(&test_dirs(base.path()));
        let mount = |kind, target: &str| MountSpec { kind, target: target.into(), read_only: false };
        let mounts = [
            mount(MountKind::Bind { source: "/srv".into() }, "/a/b/c"),
            mount(MountKind::Tmpfs { flags: 0, data: String::new() }, "/a/b"),
            mount(MountKind::Volume { name: "v1".into(), anonymous: false, copy: true }, "/a"),
        ];
        let plans = plan(&mounts, &store, &DiskPlaces::default()).unwrap();
        let targets: Vec<&str> = plans.iter().map(|plan| plan.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(plans[2].source, MountSource::Share(0));
        assert_eq!(plans[0].source, MountSource::Share(1));
        let shares = shares(&mounts, &store);
        assert_eq!((shares.len(), shares[0].source.to_str()), (2, Some("/srv")));
    }
}
