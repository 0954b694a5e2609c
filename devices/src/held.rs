//! What the process opened before it was confined, under the names that its configuration has for it.
//!
//! Afterwards those names lead nowhere: whoever opens one of them gets what is held. Without anything held, as outside a
//! cage, names are opened as ever.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

type Entry = (PathBuf, io::Result<OwnedFd>);

static HELD: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Keeps what opening `path` came to, for one [`take`]. The same path can be held several times: first in, first out.
pub fn hold(path: &Path, opened: io::Result<OwnedFd>) {
    held().push((path.to_owned(), opened));
}

/// What is held for `path`, if anything is.
pub fn take(path: &Path) -> Option<io::Result<OwnedFd>> {
    let mut held = held();
    let index = held.iter().position(|(name, _)| name == path)?;
    Some(held.remove(index).1)
}

/// Opens `path`, or takes what is held for it.
pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    match take(path) {
        Some(opened) => opened.map(File::from),
        None => options.open(path),
    }
}

fn held() -> MutexGuard<'static, Vec<Entry>> {
    // Nobody panics while holding the lock, and a list is as good as it was.
    HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_taken_once_and_in_order() {
        let path = Path::new("/no/such/file");
        hold(path, Ok(tempfile::tempfile().unwrap().into()));
        hold(path, Err(io::ErrorKind::PermissionDenied.into()));
        let mut options = OpenOptions::new();
        options.read(true);
        assert!(open(&options, path).is_ok());
        assert_eq!(open(&options, path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(open(&options, path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
