//! The disk from which every guest boots: the agent as `/init`, and the directories that it mounts on.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use images::erofs::{self, Builder};
use sha2::{Digest as _, Sha256};

/// Why the disk is not there.
#[derive(Debug, thiserror::Error)]
pub enum AgentDiskError {
    /// Its layout.
    #[error("cannot lay out the agent's disk")]
    Build(#[from] erofs::Error),
    /// Its file.
    #[error("cannot write the agent's disk {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The disk with `agent`, made once and kept in `directory` under a name that follows from its content.
pub fn ensure(directory: &Path, agent: &[u8]) -> Result<PathBuf, AgentDiskError> {
    let hash: String = Sha256::digest(agent).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(format!("{hash}.erofs"));
    if path.exists() {
        return Ok(path);
    }
    let mut builder = Builder::new().file("init", 0o755, agent);
    for mount_point in ["dev", "proc", "run", "sys"] {
        builder = builder.directory(mount_point, 0o755);
    }
    let image = builder.build()?;
    // Written aside and renamed: whoever finds the name finds all of it, also after a crash.
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&image)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| AgentDiskError::Write { path: path.clone(), source })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_made_once_and_another_agent_gets_another() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("agent");
        let first = ensure(&directory, b"\x7fELF one").unwrap();
        let made = first.metadata().unwrap().modified().unwrap();
        assert_eq!(ensure(&directory, b"\x7fELF one").unwrap(), first);
        assert_eq!(first.metadata().unwrap().modified().unwrap(), made);
        assert_ne!(ensure(&directory, b"\x7fELF two").unwrap(), first);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    }
}
