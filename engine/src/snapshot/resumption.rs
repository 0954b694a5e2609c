//! What a container that is a copy goes on from, once.

use std::path::{Path, PathBuf};

use super::MACHINE;
use crate::run::machine::AGENT_DISK;

/// Where a copy's machine waits for its first start.
const WAITING: &str = "resume";
/// Where it is while it is used. After that start the disk has moved on, so it is of no use again.
const CLAIMED: &str = "resuming";

/// A machine to go on from; its files are gone when this is dropped.
#[derive(Debug)]
pub struct Resumption {
    data: PathBuf,
    directory: PathBuf,
}

impl Resumption {
    /// Where the machine of a copy is put, in the container's data directory.
    pub(super) fn place(data: &Path) -> PathBuf {
        data.join(WAITING)
    }

    /// What the container with the data directory `data` goes on from, if it is a copy that never started.
    pub fn claim(data: &Path) -> Option<Self> {
        let directory = data.join(CLAIMED);
        // Left by a keeper that was killed.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::rename(data.join(WAITING), &directory).ok()?;
        Some(Resumption { data: data.to_owned(), directory })
    }

    /// The VM's snapshot.
    pub fn machine(&self) -> PathBuf {
        self.directory.join(MACHINE)
    }

    /// The agent's disk that the machine knows.
    pub fn agent(&self) -> PathBuf {
        self.data.join(AGENT_DISK)
    }
}

impl Drop for Resumption {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_gone_on_from_once() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(Resumption::place(base.path()).join(MACHINE)).unwrap();
        let claimed = Resumption::claim(base.path()).unwrap();
        assert!(claimed.machine().is_dir());
        assert!(Resumption::claim(base.path()).is_none());
        drop(claimed);
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
