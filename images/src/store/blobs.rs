//! The blobs of the store: found, read and verified.
//!
//! A blob is at `blobs/ALGORITHM/HEX` only when it is whole, verified and on the disk: it is written in
//! `blobs/partial/` ([`super::partial`]) and renamed. So finding it is enough to trust it, apart from the disk itself.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::digest::{Algorithm, Digest, Hasher};

/// The directory `blobs/`.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    /// Makes the directories that are missing.
    pub(super) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        let blobs = Self { dir };
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            super::create_dir(&blobs.algorithm_dir(algorithm))?;
        }
        super::create_dir(&blobs.partial_dir())?;
        Ok(blobs)
    }

    /// Where a blob is, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.algorithm_dir(digest.algorithm()).join(digest.hex())
    }

    /// Where blobs are written before they are whole.
    pub(crate) fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(super) fn algorithm_dir(&self, algorithm: Algorithm) -> PathBuf {
        self.dir.join(algorithm.name())
    }

    /// Whether a blob is there with exactly this size.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Reads a small blob, verified again. `limit` bounds the memory it takes.
    pub(crate) fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path(digest);
        let lost = || StoreError::BlobLost { digest: digest.clone() };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(lost()),
            Err(source) => return Err(StoreError::file("open", &path, source)),
        };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(|source| StoreError::file("read", &path, source))?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() == *digest { Ok(bytes) } else { Err(lost()) }
    }

    /// Stores a small blob under `digest`, which the caller has verified.
    pub(crate) fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has(digest, bytes.len() as u64) {
            return Ok(());
        }
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(|source| StoreError::file("write", file.path(), source))?;
        self.persist(file, digest)
    }

    /// A file of its own name in `partial/`, removed when dropped and swept after a crash.
    pub(crate) fn temporary(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        let dir = self.partial_dir();
        tempfile::Builder::new()
            .prefix("import-")
            .tempfile_in(&dir)
            .map_err(|source| StoreError::file("create a file in", &dir, source))
    }

    /// Makes a temporary file the blob `digest`; the caller has verified that it is.
    pub(crate) fn persist(&self, file: tempfile::NamedTempFile, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        file.as_file().sync_all().map_err(|source| StoreError::file("sync", file.path(), source))?;
        file.persist(&path).map_err(|error| StoreError::file("rename to", &path, error.error))?;
        sync_dir(&self.algorithm_dir(digest.algorithm()))
    }
}

/// Makes renames and removals in `dir` survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| StoreError::file("sync", dir, source))
}
