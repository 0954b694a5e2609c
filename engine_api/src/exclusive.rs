//! What one request at a time may do, of all servers of an installation: by locks on files, which end with their holder.

use std::path::PathBuf;

use engine::dirs::Dirs;
use engine::lock::Lock;

use crate::problem::{Kind, Problem};

/// Changing the description of a container: from comparing it to writing it.
pub const UPDATE: &str = "api-update.lock";
/// Starting a container of a tenant: from counting what runs to what runs then.
pub const START: &str = "api-start.lock";

/// Waits for its turn to do `what`.
pub fn turn(dirs: &Dirs, what: &str) -> Result<Lock, Problem> {
    Ok(Lock::acquire(&dirs.data.join(what))?)
}

/// An idempotency key in use; free again when dropped.
#[derive(Debug)]
pub struct Key {
    path: PathBuf,
    _lock: Lock,
}

impl Key {
    /// Takes the key with this digest for the time of one request.
    pub fn take(dirs: &Dirs, digest: &str) -> Result<Self, Problem> {
        let path = dirs.data.join(format!("api-key-{digest}.lock"));
        match Lock::try_acquire_removable(&path)? {
            Some(lock) => Ok(Self { path, _lock: lock }),
            None => Err(Problem::new(Kind::CONFLICT, "a request with this idempotency key is under way")),
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // A file that stays is taken over by the next one.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_once_and_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let dirs = Dirs { data: base.path().into(), run: base.path().into(), cache: base.path().into() };
        let first = Key::take(&dirs, "d").unwrap();
        assert_eq!(Key::take(&dirs, "d").unwrap_err().kind, Kind::CONFLICT);
        assert!(Key::take(&dirs, "e").is_ok());
        drop(first);
        drop(Key::take(&dirs, "d").unwrap());
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
