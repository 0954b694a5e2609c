//! Advisory file locks (flock): they vanish with the process, so a crash leaves nothing locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::StoreError;

/// The right to use the store's blobs. While one exists, in any process, garbage collection waits for another day.
#[derive(Clone, Debug)]
pub struct Lease {
    _file: Arc<File>,
}

impl Lease {
    /// Takes a share of the lock at `path`; waits while garbage is being collected.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let file = open(path)?;
        retry(|| file.lock_shared()).map_err(|source| StoreError::file("lock", path, source))?;
        Ok(Self { _file: Arc::new(file) })
    }
}

/// An exclusive lock, free again when dropped.
#[derive(Debug)]
pub(super) struct Exclusive {
    _file: File,
}

impl Exclusive {
    /// Takes the lock at `path`; waits for its holder.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let file = open(path)?;
        retry(|| file.lock()).map_err(|source| StoreError::file("lock", path, source))?;
        Ok(Self { _file: file })
    }

    /// Takes the lock at `path` if nobody holds it.
    pub(super) fn try_acquire(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = open(path)?;
        match try_lock(&file) {
            Ok(true) => Ok(Some(Self { _file: file })),
            Ok(false) => Ok(None),
            Err(source) => Err(StoreError::file("lock", path, source)),
        }
    }
}

/// Takes an exclusive lock on `file` if nobody holds one.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Repeats a blocking lock call that a signal interrupted.
pub(super) fn retry(mut lock: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|source| StoreError::file("open", path, source))
}
