//! The names of the store: which manifest each stands for.
//!
//! One JSON file, `refs/index.json`, replaced as a whole by a rename; writers take turns on `refs/lock`. Readers need
//! no lock: they see the old list or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::blobs::sync_dir;
use super::lock::Exclusive;
use crate::digest::Digest;

/// The version of the file's shape.
const SCHEMA: u32 = 1;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The manifest of one platform, a blob of the store.
    pub manifest: Digest,
    /// That platform, `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: String,
    /// When it was pulled or imported, in seconds since 1970.
    pub pulled_at: u64,
    /// What the registry calls this version: the index, if there is one.
    pub remote: Digest,
    /// The key whose signature of `remote` was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<Digest>,
}

/// All names of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Names {
    schema: u32,
    /// By normalized name.
    pub images: BTreeMap<String, Record>,
}

/// The directory `refs/`.
#[derive(Clone, Debug)]
pub(crate) struct Refs {
    dir: PathBuf,
}

impl Refs {
    pub(super) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        super::create_dir(&dir)?;
        Ok(Self { dir })
    }

    /// The names as they are now.
    pub(crate) fn load(&self) -> Result<Names, StoreError> {
        let path = self.file();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StoreError::Index { path, source }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Names::default()),
            Err(source) => Err(StoreError::file("read", &path, source)),
        }
    }

    /// Changes the names, alone. Nothing is written if `change` fails or leaves them as they are.
    pub(crate) fn update<T>(
        &self,
        change: impl FnOnce(&mut Names) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _lock = Exclusive::acquire(&self.dir.join("lock"))?;
        let before = self.load()?;
        let mut names = before.clone();
        let result = change(&mut names)?;
        if names != before {
            names.schema = SCHEMA;
            self.replace(&names)?;
        }
        Ok(result)
    }

    fn replace(&self, names: &Names) -> Result<(), StoreError> {
        let aside = self.dir.join("index.json.new");
        let path = self.file();
        let bytes = serde_json::to_vec_pretty(names)
            .map_err(|source| StoreError::Index { path: path.clone(), source })?;
        File::create(&aside)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .map_err(|source| StoreError::file("write", &aside, source))?;
        fs::rename(&aside, &path).map_err(|source| StoreError::file("rename to", &path, source))?;
        sync_dir(&self.dir)
    }

    fn file(&self) -> PathBuf {
        self.dir.join("index.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: &str) -> Record {
        let digest = Digest::of(content.as_bytes());
        Record {
            manifest: digest.clone(),
            platform: "linux/amd64".into(),
            pulled_at: 1,
            remote: digest,
            signed_by: None,
        }
    }

    #[test]
    fn writers_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let refs = Refs::open(dir.path().join("refs")).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let refs = &refs;
                scope.spawn(move || {
                    for i in 0..10 {
                        let name = format!("{thread}-{i}");
                        refs.update(|names| Ok(names.images.insert(name, record("x")))).unwrap();
                    }
                });
            }
        });
        assert_eq!(refs.load().unwrap().images.len(), 40);
    }

    #[test]
    fn a_failed_change_leaves_the_names_alone() {
        let dir = tempfile::tempdir().unwrap();
        let refs = Refs::open(dir.path().join("refs")).unwrap();
        let failed = refs.update(|names| {
            names.images.insert("a".into(), record("a"));
            Err::<(), _>(StoreError::NoSuchImage { name: "b".into() })
        });
        assert!(failed.is_err());
        assert_eq!(refs.load().unwrap(), Names::default());
    }

    #[test]
    fn a_damaged_list_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let refs = Refs::open(dir.path().join("refs")).unwrap();
        fs::write(refs.file(), "{").unwrap();
        assert!(refs.load().unwrap_err().to_string().contains("index.json"));
    }
}
