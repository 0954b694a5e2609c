//! Where snapshots are. A directory gets its name when it is whole; what else is there belongs to a maker that
//! has locked it, or to one that died.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{Manifest, SnapshotError, file};
use crate::container::id::{self, ContainerId};
use crate::dirs::Dirs;
use crate::lock::Lock;

/// Prefix of what is being made, which no name has.
const DRAFT: &str = ".draft-";

/// All snapshots of an installation.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    directory: PathBuf,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// What it is of.
    pub manifest: Manifest,
    /// Where it is.
    pub directory: PathBuf,
}

/// A snapshot that is being made, or that needs no name. It is gone when this is dropped.
#[derive(Debug)]
pub struct Draft {
    directory: PathBuf,
    _lock: Lock,
}

impl SnapshotStore {
    /// The store of `dirs`; nothing is made.
    pub fn new(dirs: &Dirs) -> Self {
        Self { directory: dirs.data.join("snapshots") }
    }

    /// Begins a snapshot.
    pub fn draft(&self) -> Result<Draft, SnapshotError> {
        let directory = self.directory.join(format!("{DRAFT}{}", ContainerId::random()));
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&directory).map_err(file("make", &directory))?;
        let lock = Lock::try_acquire_dir(&directory).map_err(file("lock", &directory))?;
        // Nobody else knows its name.
        let lock = lock.ok_or_else(|| SnapshotError::Missing(directory.display().to_string()))?;
        Ok(Draft { directory, _lock: lock })
    }

    /// An error unless `name` is one that a new snapshot may have.
    pub fn check_free(&self, name: &str) -> Result<(), SnapshotError> {
        if !id::is_name(name) {
            return Err(SnapshotError::Name(name.to_owned()));
        }
        if self.directory.join(name).exists() {
            return Err(SnapshotError::Taken(name.to_owned()));
        }
        Ok(())
    }

    /// Gives a complete draft its name.
    pub fn publish(&self, draft: Draft, name: &str) -> Result<Snapshot, SnapshotError> {
        self.check_free(name)?;
        let directory = self.directory.join(name);
        // Fails where somebody was quicker: a directory with something in it is not replaced.
        std::fs::rename(&draft.directory, &directory).map_err(file("name", &directory))?;
        self.find(name)
    }

    /// The snapshot `name`.
    pub fn find(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        let directory = self.directory.join(name);
        if !id::is_name(name) || !directory.is_dir() {
            return Err(SnapshotError::Missing(name.chars().take(200).collect()));
        }
        Ok(Snapshot { name: name.to_owned(), manifest: Manifest::read(&directory)?, directory })
    }

    /// All of them, oldest first. Damaged ones are left out.
    pub fn list(&self) -> Vec<Snapshot> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        let mut all: Vec<_> =
            entries.filter_map(|entry| self.find(entry.ok()?.file_name().to_str()?).ok()).collect();
        all.sort_by_key(|snapshot| snapshot.manifest.created_ns);
        all
    }

    /// Removes the snapshot `name`, damaged or not. Containers that go on from it have what they need.
    pub fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        let directory = self.directory.join(name);
        if !id::is_name(name) || !directory.is_dir() {
            return Err(SnapshotError::Missing(name.chars().take(200).collect()));
        }
        // Under a name that nobody finds first: half a snapshot is none.
        let hidden = self.directory.join(format!("{DRAFT}{}", ContainerId::random()));
        std::fs::rename(&directory, &hidden).map_err(file("remove", &directory))?;
        std::fs::remove_dir_all(&hidden).map_err(file("remove", &hidden))
    }

    /// Removes what dead makers left.
    pub fn sweep(&self) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(DRAFT)
                && let Ok(Some(_dead)) = Lock::try_acquire_dir(&path)
            {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

impl Draft {
    /// Where it is made.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more once it has its name.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Snapshot {
    /// The VM's part.
    pub fn machine(&self) -> PathBuf {
        self.directory.join(super::MACHINE)
    }

    /// Bytes that it takes on the disk, shared ones too.
    pub fn bytes(&self) -> u64 {
        bytes(&self.directory)
    }
}

fn bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::tests::example;
    use crate::container::test_dirs;

    #[test]
    fn a_draft_gets_a_name_or_is_gone() {
        let base = tempfile::tempdir().unwrap();
        let store = SnapshotStore::new(&test_dirs(base.path()));
        let abandoned = store.draft().unwrap().directory().to_owned();
        assert!(!abandoned.exists());
        let draft = store.draft().unwrap();
        let manifest = Manifest {
            schema: super::super::SCHEMA.into(),
            created_ns: 7,
            container: "it".into(),
            paused_us: 1,
            spec: example(&ContainerId::random()),
        };
        std::fs::write(draft.directory().join(Manifest::FILE), serde_json::to_vec(&manifest).unwrap())
            .unwrap();
        // A sweep leaves what is being made alone.
        store.sweep();
        assert_eq!(store.publish(draft, "one").unwrap().manifest.container, "it");
        assert!(matches!(store.check_free("one"), Err(SnapshotError::Taken(_))));
        assert!(matches!(store.check_free(".x"), Err(SnapshotError::Name(_))));
        assert!(matches!(store.find("../one"), Err(SnapshotError::Missing(_))));
        assert_eq!(store.list().len(), 1);
        store.remove("one").unwrap();
        assert!(store.list().is_empty());
    }

    #[test]
    fn what_a_dead_maker_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let store = SnapshotStore::new(&test_dirs(base.path()));
        let left = store.directory.join(".draft-0");
        std::fs::create_dir_all(&left).unwrap();
        store.sweep();
        assert!(!left.exists());
    }
}
