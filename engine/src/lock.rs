//! Exclusive file locks (flock): the kernel frees them with the process, so a crash leaves nothing locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A held lock, free again when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock on the file `path`, which is made if missing; waits for its holder.
    pub fn acquire(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        loop {
            match file.lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the lock on the file `path`, which is made if missing; `None` where somebody holds it.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        Self::try_lock(open(path)?)
    }

    /// Takes the lock on the existing directory `path`; `None` where somebody holds it.
    pub fn try_acquire_dir(path: &Path) -> io::Result<Option<Self>> {
        Self::try_lock(File::open(path)?)
    }

    /// As [`Lock::try_acquire`] for a file that its holder removes: what is locked is the file that `path` names.
    pub fn try_acquire_removable(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let Some(lock) = Self::try_acquire(path)? else { return Ok(None) };
            let ours = lock._file.metadata()?;
            match path.metadata() {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(Some(lock)),
                Ok(_) => {}
                // Its last holder has removed it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A lock that the parent process took.
    pub fn of_inherited(fd: OwnedFd) -> Self {
        Self { _file: fd.into() }
    }

    /// Its descriptor, for a child process to inherit.
    pub fn fd(&self) -> RawFd {
        self._file.as_raw_fd()
    }

    fn try_lock(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_exclusive_and_free_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::acquire(&path).unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_acquire(&path).unwrap().is_some());
        let first = Lock::try_acquire_removable(&path).unwrap().unwrap();
        assert!(Lock::try_acquire_removable(&path).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        // The name is free, and whoever waits for the old file does not take it for the new one.
        assert!(Lock::try_acquire_removable(&path).unwrap().is_some());
        drop(first);
        let held = Lock::try_acquire_dir(dir.path()).unwrap();
        assert!(held.is_some() && Lock::try_acquire_dir(dir.path()).unwrap().is_none());
    }
}
