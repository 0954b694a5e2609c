//! A container's place on the host while it runs, and who owns it.
//!
//! ```text
//! create ──► Container (holds two flocks) ── drop ──► files removed
//!                 └── the process dies ──► flocks free ──► the next command's sweep removes the files
//! ```
//!
//! Its files are in two directories, `containers/ID` below the run directory (lock, socket, logs) and below the
//! data directory (disks). The owner holds a flock on `lock` in the first and on the second directory itself, so
//! installations that share only one of the two never take each other's containers for dead.

pub mod id;
pub mod leftover;
pub mod sweep;

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::dirs::Dirs;
use crate::lock::Lock;
use id::ContainerId;

/// Longest path of a Unix socket, without its final zero.
const MAX_SOCKET_PATH: usize = 107;

/// Why a container's place could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The name is not one.
    #[error(
        "--name {0:?} is no name for a container: use 2 to 128 letters, digits, '_', '.' and '-', the first one a \
         letter or digit"
    )]
    Name(String),
    /// Somebody has it.
    #[error("the name {name:?} is in use by container {id}; choose another --name")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// A Unix socket could not be there.
    #[error(
        "the run directory {} is too long: a socket in it would have {length} bytes of at most {MAX_SOCKET_PATH}; set \
         LIGHTER_RUN to a shorter path", path.display()
    )]
    LongPath {
        /// The run directory.
        path: PathBuf,
        /// Length of the longest socket path.
        length: usize,
    },
    /// The file system refused something.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The place of one container, removed on drop.
#[derive(Debug)]
pub struct Container {
    /// Its identity.
    pub id: ContainerId,
    /// The name that the user gave or that was invented.
    pub name: String,
    run: PathBuf,
    data: PathBuf,
    keep_data: bool,
    _locks: [Lock; 2],
}

impl Container {
    /// Makes the place of the new container `id`. Without `name` one is invented.
    pub fn create(dirs: &Dirs, id: ContainerId, name: Option<&str>) -> Result<Self, ContainerError> {
        if let Some(name) = name.filter(|name| !id::is_name(name)) {
            return Err(ContainerError::Name(name.to_owned()));
        }
        let _table = Table::lock(dirs)?;
        let name = free_name(dirs, name)?;
        let run = Table::run(dirs).join(id.as_str());
        let data = Table::data(dirs).join(id.as_str());
        let length = run.join("v.sock_4294967295").as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(ContainerError::LongPath { path: dirs.run.clone(), length });
        }
        make_dir(&run)?;
        let lock = |result: io::Result<Option<Lock>>, path: &Path| match result {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(file("lock", path)(io::ErrorKind::WouldBlock.into())),
            Err(source) => Err(file("lock", path)(source)),
        };
        let run_lock = lock(Lock::try_acquire(&run.join("lock")), &run.join("lock"))?;
        make_dir(&data)?;
        let data_lock = lock(Lock::try_acquire_dir(&data), &data)?;
        let container = Self { id, name, run, data, keep_data: false, _locks: [run_lock, data_lock] };
        std::fs::write(container.run.join("name"), &container.name)
            .map_err(file("write", &container.run.join("name")))?;
        Ok(container)
    }

    /// The vsock device's socket.
    pub fn vsock(&self) -> PathBuf {
        self.run.join("v.sock")
    }

    /// The VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// The guest's console.
    pub fn console_log(&self) -> PathBuf {
        self.run.join("console.log")
    }

    /// What the VMM process says on its stderr.
    pub fn vmm_log(&self) -> PathBuf {
        self.run.join("vmm.log")
    }

    /// The writable layer.
    pub fn disk(&self) -> PathBuf {
        self.data.join("disk.ext4")
    }

    /// Remembers the VMM process for a sweep.
    pub fn record_vmm(&self, pid: u32) -> Result<(), ContainerError> {
        let path = self.run.join("vmm.pid");
        leftover::record(&path, pid).map_err(file("write", &path))
    }

    /// Leaves the disk for whoever wants to look at it; the next command's sweep removes it.
    pub fn keep_data(&mut self) {
        self.keep_data = true;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A failure leaves something to the next sweep, which has the same means.
        if !self.keep_data {
            let _ = std::fs::remove_dir_all(&self.data);
        }
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// The directories of all containers, locked: nobody creates and nobody sweeps.
struct Table {
    _locks: [Lock; 2],
}

impl Table {
    fn lock(dirs: &Dirs) -> Result<Self, ContainerError> {
        let lock = |base: &Path| {
            make_dir(&base.join("containers"))?;
            let path = base.join("containers.lock");
            Lock::acquire(&path).map_err(file("lock", &path))
        };
        Ok(Self { _locks: [lock(&dirs.run)?, lock(&dirs.data)?] })
    }

    fn run(dirs: &Dirs) -> PathBuf {
        dirs.run.join("containers")
    }

    fn data(dirs: &Dirs) -> PathBuf {
        dirs.data.join("containers")
    }
}

/// The wanted name if nobody has it, else an invented one. The table is locked.
fn free_name(dirs: &Dirs, wanted: Option<&str>) -> Result<String, ContainerError> {
    let directory = Table::run(dirs);
    let entries = std::fs::read_dir(&directory).map_err(file("list", &directory))?;
    let taken: Vec<(String, String)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
            Some((name, entry.file_name().to_string_lossy().into_owned()))
        })
        .collect();
    let owner = |name: &str| taken.iter().find(|(other, _)| other == name).map(|(_, id)| id.clone());
    match wanted {
        Some(name) => match owner(name) {
            Some(id) => Err(ContainerError::NameTaken { name: name.to_owned(), id }),
            None => Ok(name.to_owned()),
        },
        None => {
            let name = id::random_name();
            // Two words give 1024 names; a number makes room for more containers than that.
            Ok(match owner(&name) {
                None => name,
                Some(_) => format!("{name}_{}", ContainerId::random()),
            })
        }
    }
}

fn make_dir(path: &Path) -> Result<(), ContainerError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file("make", path))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContainerError {
    let path = path.to_owned();
    move |source| ContainerError::File { action, path, source }
}

#[cfg(test)]
pub(crate) fn test_dirs(base: &Path) -> Dirs {
    let dirs = Dirs { data: base.join("data"), run: base.join("run"), cache: base.join("cache") };
    dirs.create().unwrap();
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_exists_while_its_owner_lives() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let container = Container::create(&dirs, ContainerId::random(), Some("barge")).unwrap();
        assert!(container.vsock().parent().unwrap().is_dir() && container.disk().parent().unwrap().is_dir());
        drop(container);
        assert_eq!(std::fs::read_dir(Table::run(&dirs)).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(Table::data(&dirs)).unwrap().count(), 0);
    }

    #[test]
    fn a_name_belongs_to_one_container_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let first = Container::create(&dirs, ContainerId::random(), Some("barge")).unwrap();
        let second = Container::create(&dirs, ContainerId::random(), Some("barge"));
        assert!(matches!(second, Err(ContainerError::NameTaken { .. })));
        drop(first);
        Container::create(&dirs, ContainerId::random(), Some("barge")).unwrap();
    }

    #[test]
    fn bad_names_and_long_paths_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        assert!(matches!(
            Container::create(&dirs, ContainerId::random(), Some("../x")),
            Err(ContainerError::Name(_))
        ));
        let long = test_dirs(&base.path().join("x".repeat(100)));
        assert!(matches!(
            Container::create(&long, ContainerId::random(), None),
            Err(ContainerError::LongPath { .. })
        ));
    }
}
