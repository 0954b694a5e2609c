//! Named volumes: `volumes/NAME/{volume.json,_data/}`, or `disk.ext4` for a disk, in the data directory. None goes but by the user's word.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use images::ext4::DEFAULT_SIZE;

use super::{MountKind, MountSpec, VolumeError};
use crate::container::record;
use crate::container::state::now_ns;
use crate::dirs::Dirs;
use crate::lock::Lock;

/// Version of the file.
pub const SCHEMA: &str = "lighter.volume.v1";
/// Largest description that is read.
const MAX_FILE: u64 = 1 << 20;
const FILE: &str = "volume.json";
const CONTENT: &str = "_data";
const DISK: &str = "disk.ext4";
const DISK_LOCK: &str = ".in-use";

/// One volume.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Volume {
    /// [`SCHEMA`]
    pub schema: String,
    /// Its name.
    pub name: String,
    /// When it was made, in ns since 1970.
    pub created_ns: u64,
    /// Whatever the user wants to remember.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// It was made for one container and has no name that anybody chose.
    #[serde(default)]
    pub anonymous: bool,
    /// It is a disk of so many bytes; otherwise a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

/// A volume that is a disk, for the one machine that has it.
#[derive(Debug)]
pub struct ClaimedDisk {
    /// The disk's image.
    pub path: PathBuf,
    /// Nobody writes to it.
    pub read_only: bool,
    _lock: Lock,
}

/// The volumes of an installation.
pub struct VolumeStore {
    dirs: Dirs,
}

impl VolumeStore {
    /// Those below the data directory of `dirs`.
    pub fn new(dirs: &Dirs) -> Self {
        Self { dirs: dirs.clone() }
    }

    /// Where the files of the volume `name` are.
    pub fn content(&self, name: &str) -> PathBuf {
        self.place(name).join(CONTENT)
    }

    /// The file of the volume `name`, if it is a disk.
    pub fn disk(&self, name: &str) -> Option<PathBuf> {
        Some(self.place(name).join(DISK)).filter(|path| path.exists())
    }

    /// Makes the volume `name`, a disk of `size` bytes, unless it is there; true if it was made.
    pub fn create_disk(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        size: u64,
    ) -> Result<bool, VolumeError> {
        check_name(name)?;
        let _lock = self.lock()?;
        match self.read(name) {
            Some(there) if there.disk.is_some() => return Ok(false),
            Some(_) => return Err(VolumeError::OtherKind { name: name.to_owned() }),
            None => {}
        }
        let path = self.place(name).join(DISK);
        std::fs::create_dir_all(self.place(name)).map_err(file("make", &path))?;
        // Left by a crash before anything was written down.
        let _ = std::fs::remove_file(&path);
        images::ext4::create_writable_layer(&path, size)
            .map_err(|source| VolumeError::Disk { name: name.to_owned(), source })?;
        self.describe(name, labels, false, Some(size))
    }

    /// The disks among `mounts`, in their order, each this process's alone until the claims are dropped.
    pub fn claim_disks(&self, mounts: &[MountSpec]) -> Result<Vec<ClaimedDisk>, VolumeError> {
        let mut claimed = Vec::new();
        for mount in mounts {
            let MountKind::Volume { name, .. } = &mount.kind else { continue };
            let Some(path) = self.disk(name) else { continue };
            let lock = Lock::try_acquire(&self.place(name).join(DISK_LOCK)).map_err(file("lock", &path))?;
            let lock = lock.ok_or_else(|| VolumeError::DiskInUse { name: name.clone() })?;
            claimed.push(ClaimedDisk { path, read_only: mount.read_only, _lock: lock });
        }
        Ok(claimed)
    }

    /// There is nothing in it, or it is not there.
    pub fn is_empty(&self, name: &str) -> bool {
        std::fs::read_dir(self.content(name)).map_or(true, |mut entries| entries.next().is_none())
    }

    /// Makes the volume `name` unless it is there; true if it was made.
    pub fn create(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        anonymous: bool,
    ) -> Result<bool, VolumeError> {
        check_name(name)?;
        let _lock = self.lock()?;
        self.create_locked(name, labels, anonymous)
    }

    /// Makes what of the volumes of `mounts` is not there; `anonymous` ones only for a container that starts.
    pub fn ensure(&self, mounts: &[MountSpec], anonymous: bool) -> Result<(), VolumeError> {
        for mount in mounts {
            match &mount.kind {
                MountKind::Volume { name, anonymous: false, .. } if self.disk(name).is_none() => {
                    self.create(name, BTreeMap::new(), false)?;
                }
                MountKind::Volume { name, anonymous: true, .. } if anonymous => {
                    self.create(name, BTreeMap::new(), true)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives the empty ones of the volumes of `mounts` what the image's root filesystem `image` has at their places, as
    /// Docker does.
    pub fn fill(&self, mounts: &[MountSpec], image: &Path) -> Result<(), VolumeError> {
        for mount in mounts {
            let MountKind::Volume { name, copy: true, .. } = &mount.kind else { continue };
            if self.disk(name).is_some() {
                continue;
            }
            let _lock = self.lock()?;
            if self.is_empty(name) {
                let content = self.content(name);
                images::erofs::copy_directory(image, &mount.target, &content)
                    .map_err(file("copy the image's files to", &content))?;
            }
        }
        Ok(())
    }

    /// The volume `name`.
    pub fn find(&self, name: &str) -> Result<Volume, VolumeError> {
        let missing = || VolumeError::Missing(name.chars().take(200).collect());
        check_name(name).map_err(|_| missing())?;
        self.read(name).ok_or_else(missing)
    }

    /// All volumes by name. One whose description is damaged is left out.
    pub fn list(&self) -> Vec<Volume> {
        let entries = std::fs::read_dir(self.root()).into_iter().flatten();
        let mut volumes: Vec<Volume> =
            entries.filter_map(|entry| self.read(entry.ok()?.file_name().to_str()?)).collect();
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        volumes
    }

    /// Names of the containers, running or not, that have the volume `name`.
    pub fn users(&self, name: &str) -> Vec<String> {
        let has =
            |mount: &MountSpec| matches!(&mount.kind, MountKind::Volume { name: one, .. } if one == name);
        let records = record::described(&self.dirs).into_iter();
        records.filter(|(_, spec)| spec.mounts.iter().any(has)).map(|(name, _)| name).collect()
    }

    /// Removes the volume `name`, unless a container has it.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        self.find(name)?;
        let _lock = self.lock()?;
        let users = self.users(name);
        if !users.is_empty() {
            return Err(VolumeError::InUse { name: name.to_owned(), containers: users.join(", ") });
        }
        self.remove_locked(name)
    }

    /// Removes the volumes that no container has, those with a name only if `all`; gives their names.
    pub fn prune(&self, all: bool) -> Result<Vec<String>, VolumeError> {
        let _lock = self.lock()?;
        let unused = |volume: &Volume| (all || volume.anonymous) && self.users(&volume.name).is_empty();
        let names: Vec<String> = self.list().into_iter().filter(unused).map(|volume| volume.name).collect();
        names.iter().try_for_each(|name| self.remove_locked(name))?;
        Ok(names)
    }

    /// Removes the anonymous volumes of a container that is gone. What cannot be removed is left to `prune`.
    pub fn remove_anonymous(&self, mounts: &[MountSpec]) {
        for mount in mounts {
            if let MountKind::Volume { name, anonymous: true, .. } = &mount.kind {
                let _ = self.remove(name);
            }
        }
    }

    fn create_locked(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        anonymous: bool,
    ) -> Result<bool, VolumeError> {
        let place = self.place(name);
        let content = place.join(CONTENT);
        let there = self.read(name).is_some();
        // Also where only a part of it was made.
        std::fs::create_dir_all(&content).map_err(file("make", &content))?;
        if there {
            return Ok(false);
        }
        self.describe(name, labels, anonymous, None)
    }

    /// Writes the volume down, with which it exists.
    fn describe(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        anonymous: bool,
        disk: Option<u64>,
    ) -> Result<bool, VolumeError> {
        let (schema, name, created_ns) = (SCHEMA.to_owned(), name.to_owned(), now_ns());
        let path = self.place(&name).join(FILE);
        let volume = Volume { schema, name, created_ns, labels, anonymous, disk };
        record::write_json(&path, &volume).map_err(file("write", &path))?;
        Ok(true)
    }

    fn remove_locked(&self, name: &str) -> Result<(), VolumeError> {
        let place = self.place(name);
        // First its description, so that half a volume is none.
        let path = place.join(FILE);
        std::fs::remove_file(&path).map_err(file("remove", &path))?;
        std::fs::remove_dir_all(&place).map_err(file("remove", &place))
    }

    fn read(&self, name: &str) -> Option<Volume> {
        use std::io::Read as _;
        check_name(name).ok()?;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(self.place(name).join(FILE)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        let volume: Volume = serde_json::from_slice(&bytes).ok()?;
        (volume.schema == SCHEMA && volume.name == name).then_some(volume)
    }

    fn lock(&self) -> Result<Lock, VolumeError> {
        let root = self.root();
        std::fs::create_dir_all(&root).map_err(file("make", &root))?;
        // Not the name of any volume.
        let path = root.join(".lock");
        Lock::acquire(&path).map_err(file("lock", &path))
    }

    fn root(&self) -> PathBuf {
        self.dirs.data.join("volumes")
    }

    fn place(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }
}

/// Whether `name` can be a volume's.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let good = (2..=128).contains(&name.len())
        && name.bytes().all(plain)
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if good { Ok(()) } else { Err(VolumeError::Name(name.chars().take(200).collect())) }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::id::ContainerId;
    use crate::container::state::State;
    use crate::container::{Container, spec, test_dirs};
    use crate::volumes::parse;

    #[test]
    fn a_volume_stays_until_it_is_removed_and_is_not_removed_while_a_container_has_it() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let store = VolumeStore::new(&dirs);
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(store.create("data", labels.clone(), false).unwrap());
        std::fs::write(store.content("data").join("file"), "kept").unwrap();
        assert!(!store.create("data", BTreeMap::new(), false).unwrap());
        assert_eq!(store.find("data").unwrap().labels, labels);
        assert!(!store.is_empty("data") && store.is_empty("nothing"));

        let mut container = Container::reserve(&dirs, ContainerId::random(), Some("user")).unwrap();
        let mut spec = spec::tests::example(&container.id);
        spec.mounts = vec![parse::volume("data:/x").unwrap()];
        // Described is enough: it may start at any moment.
        container.describe(&spec).unwrap();
        assert_eq!(store.users("data"), ["user"]);
        assert!(store.remove("data").unwrap_err().to_string().contains("in use by user"));
        assert!(store.prune(true).unwrap().is_empty());
        container.keep(&spec, &State::default()).unwrap();
        container.remove();
        assert!(store.prune(false).unwrap().is_empty());
        assert_eq!(store.prune(true).unwrap(), ["data"]);
        assert!(store.find("data").is_err() && store.list().is_empty());
        assert!(store.remove("data").unwrap_err().to_string().contains("no such volume"));
    }

    #[test]
    fn names_lead_nowhere() {
        let base = tempfile::tempdir().unwrap();
        let store = VolumeStore::new(&test_dirs(base.path()));
        for bad in ["", "a", "..", "../x", "a/b", ".lock", "-x", "a b", &"x".repeat(129)] {
            assert!(store.create(bad, BTreeMap::new(), false).is_err(), "{bad:?}");
            assert!(store.remove(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn anonymous_volumes_go_with_their_container_and_damaged_ones_are_none() {
        let base = tempfile::tempdir().unwrap();
        let store = VolumeStore::new(&test_dirs(base.path()));
        let mounts = crate::volumes::resolve(vec![], &["/data".to_owned()]).unwrap();
        store.ensure(&mounts, true).unwrap();
        assert_eq!(store.list().len(), 1);
        store.remove_anonymous(&mounts);
        assert!(store.list().is_empty());
        store.create("broken", BTreeMap::new(), false).unwrap();
        std::fs::write(store.place("broken").join(FILE), "{").unwrap();
        assert!(store.list().is_empty() && store.find("broken").is_err());
    }
}
