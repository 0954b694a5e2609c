//! The programs that lighter carries, put where they can be used: each made once under a name that follows from
//! its content, so that two versions of lighter share a host.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use images::erofs::{self, Builder};
use programs::Program;

use crate::dirs::Dirs;

/// Why a carried program is not where it is needed.
#[derive(Debug, thiserror::Error)]
pub enum CarriedError {
    /// The layout of the agent's disk.
    #[error("cannot lay out the agent's disk")]
    Build(#[from] erofs::Error),
    /// A file.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The disk from which every guest boots: the agent as `/init`, and the directories that it mounts on.
pub fn agent_disk(dirs: &Dirs) -> Result<PathBuf, CarriedError> {
    agent_disk_with(&dirs.data.join("agent"), programs::AGENT)
}

/// The VMM of containers.
pub fn machine(dirs: &Dirs) -> Result<PathBuf, CarriedError> {
    let name = format!("lighter-machine-{}", programs::MACHINE.id);
    once(&dirs.data.join("vmm"), &name, 0o755, || Ok(programs::MACHINE.content))
}

/// The VMM with Firecracker's API and command line.
pub fn vmm(dirs: &Dirs) -> Result<PathBuf, CarriedError> {
    let name = format!("lighter-vmm-{}", programs::VMM.id);
    once(&dirs.data.join("vmm"), &name, 0o755, || Ok(programs::VMM.content))
}

/// What starts the latter in place of Firecracker's jailer.
pub fn jailer(dirs: &Dirs) -> Result<PathBuf, CarriedError> {
    let name = format!("lighter-jailer-{}", programs::JAILER.id);
    once(&dirs.data.join("vmm"), &name, 0o755, || Ok(programs::JAILER.content))
}

fn agent_disk_with(directory: &Path, agent: Program) -> Result<PathBuf, CarriedError> {
    once(directory, &format!("{}.erofs", agent.id), 0o644, || {
        let mut builder = Builder::new().file("init", 0o755, agent.content);
        for mount_point in ["dev", "proc", "run", "sys"] {
            builder = builder.directory(mount_point, 0o755);
        }
        builder.build()
    })
}

/// The file `name` in `directory`, made by `content` where it is not there. Written aside and renamed: whoever
/// finds the name finds all of it, also after a crash.
fn once<C: AsRef<[u8]>>(
    directory: &Path,
    name: &str,
    mode: u32,
    content: impl FnOnce() -> Result<C, erofs::Error>,
) -> Result<PathBuf, CarriedError> {
    let path = directory.join(name);
    if path.exists() {
        return Ok(path);
    }
    let content = content()?;
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(content.as_ref())?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| CarriedError::Write { path: path.clone(), source })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::test_dirs;

    #[test]
    fn the_disk_is_made_once_and_another_agent_gets_another() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("agent");
        let one = Program { id: "1", content: b"\x7fELF one" };
        let two = Program { id: "2", content: b"\x7fELF two" };
        let first = agent_disk_with(&directory, one).unwrap();
        let made = first.metadata().unwrap().modified().unwrap();
        assert_eq!(agent_disk_with(&directory, one).unwrap(), first);
        assert_eq!(first.metadata().unwrap().modified().unwrap(), made);
        assert_ne!(agent_disk_with(&directory, two).unwrap(), first);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    }

    #[test]
    fn the_vmm_can_be_run() {
        let base = tempfile::tempdir().unwrap();
        for path in [machine(&test_dirs(base.path())), vmm(&test_dirs(base.path()))] {
            let said = std::process::Command::new(path.unwrap()).arg("vmm").output().unwrap();
            assert_eq!(said.status.code(), Some(125));
            assert!(String::from_utf8_lossy(&said.stderr).contains("--config-fd"));
        }
    }
}
