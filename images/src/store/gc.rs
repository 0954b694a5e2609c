//! Removing: names, and then whatever no name needs any more.
//!
//! A blob, a root filesystem or a partial file is garbage if no name leads to it. Garbage collection holds the
//! store's lock exclusively, so nobody is writing or using blobs meanwhile; if somebody is, it is left for later.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::lock::Exclusive;
use super::{Store, StoreError};
use crate::digest::{Algorithm, ChainId};
use crate::manifest::{self, MAX_CONFIG_BYTES};

/// A partial blob younger than this is kept for a pull to go on with, unless a prune asks for all.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What [`Store::remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The name that is gone.
    pub untagged: String,
    /// What went with it.
    pub collected: Collected,
}

/// What a garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Files removed.
    pub files: u64,
    /// Bytes of disk space given back.
    pub bytes: u64,
    /// Somebody was using the store, so nothing was removed; the next `prune` does it.
    pub deferred: bool,
}

/// Space of one kind of file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Files.
    pub count: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// How many of these bytes [`Store::prune`] gives back.
    pub reclaimable: u64,
}

/// What the store takes on the disk: `lighter system df`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskUsage {
    /// Names.
    pub images: u64,
    /// Manifests, configurations and layers.
    pub blobs: Usage,
    /// Blobs that a pull left unfinished.
    pub partial: Usage,
    /// Root filesystems built from layers.
    pub rootfs: Usage,
}

impl Store {
    /// Removes the image called `name` (as [`Store::image`] finds it) and then what no other image needs.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let untagged = self.refs.update(|names| {
            let (name, _) = self.find(names, name)?;
            names.images.remove(&name);
            Ok(name)
        })?;
        Ok(Removed { untagged, collected: self.collect(PARTIAL_KEPT)? })
    }

    /// Removes everything that no image needs, unfinished blobs too.
    pub fn prune(&self) -> Result<Collected, StoreError> {
        self.collect(Duration::ZERO)
    }

    /// What the store takes on the disk. A snapshot: others may change it meanwhile.
    pub fn system_df(&self) -> Result<DiskUsage, StoreError> {
        let live = self.live()?;
        let mut usage = DiskUsage { images: live.names, ..DiskUsage::default() };
        for file in self.files(Duration::ZERO)? {
            let kind = match file.kind {
                Kind::Blob => &mut usage.blobs,
                Kind::Partial { .. } => &mut usage.partial,
                Kind::Rootfs => &mut usage.rootfs,
            };
            kind.count += 1;
            kind.bytes += file.bytes;
            if live.garbage(&file) {
                kind.reclaimable += file.bytes;
            }
        }
        Ok(usage)
    }

    fn collect(&self, partial_kept: Duration) -> Result<Collected, StoreError> {
        let Some(_lock) = Exclusive::try_acquire(&self.lock_path())? else {
            return Ok(Collected { deferred: true, ..Collected::default() });
        };
        let live = self.live()?;
        let mut collected = Collected::default();
        for file in self.files(partial_kept)? {
            if !live.garbage(&file) {
                continue;
            }
            remove_entry(&file.path).map_err(|source| StoreError::file("remove", &file.path, source))?;
            collected.files += 1;
            collected.bytes += file.bytes;
        }
        Ok(collected)
    }

    /// What names lead to. A manifest that cannot be read keeps only itself.
    fn live(&self) -> Result<Live, StoreError> {
        let names = self.refs.load()?;
        let mut live = Live { names: names.images.len() as u64, ..Live::default() };
        for (name, record) in &names.images {
            live.blobs.insert(self.blobs.path(&record.manifest));
            let Ok(manifest) = self.manifest(name, &record.manifest) else { continue };
            live.blobs.extend(manifest.blobs().map(|blob| self.blobs.path(&blob.digest)));
            let Ok(config) = self.blobs.read(&manifest.config.digest, MAX_CONFIG_BYTES) else { continue };
            if let Ok((_, diff_ids)) = manifest::parse_config(&config, manifest.layers.len()) {
                live.chains.insert(ChainId::of(&diff_ids).0.hex().to_owned());
            }
        }
        Ok(live)
    }

    fn files(&self, partial_kept: Duration) -> Result<Vec<StoredFile>, StoreError> {
        let mut files = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            list(&self.blobs.algorithm_dir(algorithm), |_| Kind::Blob, &mut files)?;
        }
        let old = SystemTime::now().checked_sub(partial_kept);
        let partial = |metadata: &fs::Metadata| {
            let modified = metadata.modified().ok();
            Kind::Partial { stale: modified.zip(old).is_none_or(|(modified, old)| modified <= old) }
        };
        list(&self.blobs.partial_dir(), partial, &mut files)?;
        list(&self.rootfs_dir(), |_| Kind::Rootfs, &mut files)?;
        Ok(files)
    }
}

enum Kind {
    Blob,
    Partial { stale: bool },
    Rootfs,
}

struct StoredFile {
    path: PathBuf,
    kind: Kind,
    bytes: u64,
}

#[derive(Default)]
struct Live {
    names: u64,
    blobs: BTreeSet<PathBuf>,
    /// Chain IDs, as hexadecimal digits.
    chains: BTreeSet<String>,
}

impl Live {
    fn garbage(&self, file: &StoredFile) -> bool {
        match file.kind {
            Kind::Blob => !self.blobs.contains(&file.path),
            Kind::Partial { stale } => stale,
            Kind::Rootfs => {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                let chain = name.get(..64).unwrap_or_default();
                !self.chains.iter().any(|live| live.starts_with(chain) && !chain.is_empty())
            }
        }
    }
}

fn list(
    dir: &Path,
    kind: impl Fn(&fs::Metadata) -> Kind,
    files: &mut Vec<StoredFile>,
) -> Result<(), StoreError> {
    let entries = fs::read_dir(dir).map_err(|source| StoreError::file("list", dir, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| StoreError::file("list", dir, source))?;
        // Another process may have removed it since it was listed.
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        files.push(StoredFile { path: entry.path(), kind: kind(&metadata), bytes: metadata.blocks() * 512 });
    }
    Ok(())
}

fn remove_entry(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
