//! A container's place on the host, and who owns it.
//!
//! ```text
//! reserve ──► Container (holds two flocks) ── keep ──► spec.json, state.json: stays ── remove ──► files removed
//!    or open       └── the process dies ──► flocks free ──► the next command's sweep: it has ended, or never was
//! ```
//!
//! Its files are in two directories, `containers/ID` below the run directory (lock, sockets, only while somebody owns
//! it) and below the data directory (specification, state, disk, log). The owner holds a flock on `lock` in the first
//! and on the second directory itself, so installations that share only one of the two never take each other's
//! containers for dead.

pub mod cache;
pub mod health;
pub mod id;
pub mod leftover;
pub mod record;
pub mod spec;
pub mod state;
pub mod sweep;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::dirs::Dirs;
use crate::lock::Lock;
use id::ContainerId;
use record::{rewrite_json, write_json};
use spec::ContainerSpec;
use state::State;

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
    /// Its owner is at work.
    #[error("container {id} is in use: it runs, or another command works on it")]
    Busy {
        /// The container.
        id: String,
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

/// The place of one container, ours alone. What was not kept is removed on drop.
#[derive(Debug)]
pub struct Container {
    /// Its identity.
    pub id: ContainerId,
    run: PathBuf,
    data: PathBuf,
    kept: bool,
    bequeathed: bool,
    locks: [Lock; 2],
}

impl Container {
    /// Makes the place of the new container `id`. Without `name` one is invented.
    pub fn reserve(dirs: &Dirs, id: ContainerId, name: Option<&str>) -> Result<Self, ContainerError> {
        if let Some(name) = name.filter(|name| !id::is_name(name)) {
            return Err(ContainerError::Name(name.to_owned()));
        }
        let _table = Table::lock(dirs)?;
        let name = free_name(dirs, name)?;
        let container = Self::take(dirs, id, false)?;
        let path = container.data.join("name");
        std::fs::write(&path, name).map_err(file("write", &path))?;
        Ok(container)
    }

    /// Makes a place for a machine that is no container: it has no name, and nobody sees it.
    pub fn nameless(dirs: &Dirs) -> Result<Self, ContainerError> {
        let _table = Table::lock(dirs)?;
        Self::take(dirs, ContainerId::random(), false)
    }

    /// Becomes the owner of a container that was kept.
    pub fn open(dirs: &Dirs, id: &ContainerId) -> Result<Self, ContainerError> {
        let _table = Table::lock(dirs)?;
        let data = Table::data(dirs).join(id.as_str());
        std::fs::metadata(data.join("state.json")).map_err(file("find", &data))?;
        Self::take(dirs, id.clone(), true)
    }

    /// Goes on as the owner that its parent process was, whose locks it has inherited.
    pub fn inherit(dirs: &Dirs, id: ContainerId, locks: [OwnedFd; 2]) -> Self {
        let (run, data) = places(dirs, &id);
        Self { id, run, data, kept: true, bequeathed: false, locks: locks.map(Lock::of_inherited) }
    }

    /// The table is locked.
    fn take(dirs: &Dirs, id: ContainerId, kept: bool) -> Result<Self, ContainerError> {
        let (run, data) = places(dirs, &id);
        let length = run.join("v.sock_4294967295").as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(ContainerError::LongPath { path: dirs.run.clone(), length });
        }
        let lock = |result: io::Result<Option<Lock>>, path: &Path| match result {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(ContainerError::Busy { id: id.as_str().to_owned() }),
            Err(source) => Err(file("lock", path)(source)),
        };
        make_dir(&data)?;
        let data_lock = lock(Lock::try_acquire_dir(&data), &data)?;
        make_dir(&run)?;
        let run_lock = lock(Lock::try_acquire(&run.join("lock")), &run.join("lock"))?;
        Ok(Self { id, run, data, kept, bequeathed: false, locks: [run_lock, data_lock] })
    }

    /// Writes down what it is. It stays once its state is saved.
    pub fn describe(&self, spec: &ContainerSpec) -> Result<(), ContainerError> {
        let path = self.data.join("spec.json");
        write_json(&path, spec).map_err(file("write", &path))
    }

    /// Makes it stay, as what `spec` says.
    pub fn keep(&mut self, spec: &ContainerSpec, state: &State) -> Result<(), ContainerError> {
        self.describe(spec)?;
        self.save(state)?;
        self.kept = true;
        Ok(())
    }

    /// Notes what has become of it.
    pub fn save(&self, state: &State) -> Result<(), ContainerError> {
        let path = self.data.join("state.json");
        rewrite_json(&path, state).map_err(file("write", &path))
    }

    /// Removes it with everything in it on drop.
    pub fn remove(mut self) {
        self.kept = false;
    }

    /// Leaves it to a child process that has inherited its locks.
    pub fn bequeath(mut self) {
        self.bequeathed = true;
    }

    /// Its locks, as descriptors that a child process may inherit.
    pub fn lock_fds(&self) -> [RawFd; 2] {
        self.locks.each_ref().map(Lock::fd)
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The vsock device's socket.
    pub fn vsock(&self) -> PathBuf {
        self.run.join("v.sock")
    }

    /// The VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// The keeper's socket.
    pub fn keeper(&self) -> PathBuf {
        self.run.join("keeper.sock")
    }

    /// What the keeper says on its stderr.
    pub fn keeper_log(&self) -> PathBuf {
        self.data.join("keeper.log")
    }

    /// The guest's console.
    pub fn console_log(&self) -> PathBuf {
        self.data.join("console.log")
    }

    /// What the VMM process says on its stderr.
    pub fn vmm_log(&self) -> PathBuf {
        self.run.join("vmm.log")
    }

    /// Where the server of host directories makes its tree.
    pub fn shares(&self) -> PathBuf {
        self.run.join("shares")
    }

    /// What that server says on its stderr.
    pub fn shares_log(&self) -> PathBuf {
        self.run.join("shares.log")
    }

    /// The writable layer.
    pub fn disk(&self) -> PathBuf {
        self.data.join("disk.ext4")
    }

    /// What the process writes.
    pub fn log(&self) -> PathBuf {
        self.data.join("log")
    }

    /// Remembers the VMM process for a sweep.
    pub fn record_vmm(&self, pid: u32) -> Result<(), ContainerError> {
        let path = self.run.join("vmm.pid");
        leftover::record(&path, pid).map_err(file("write", &path))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.bequeathed {
            return;
        }
        // A failure leaves something to the next sweep, which has the same means.
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.data);
        }
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// Gives the container another name.
pub fn rename(dirs: &Dirs, id: &ContainerId, name: &str) -> Result<(), ContainerError> {
    if !id::is_name(name) {
        return Err(ContainerError::Name(name.to_owned()));
    }
    let _table = Table::lock(dirs)?;
    let name = free_name(dirs, Some(name))?;
    let path = Table::data(dirs).join(id.as_str()).join("name");
    let partial = path.with_extension("new");
    std::fs::write(&partial, name)
        .and_then(|()| std::fs::rename(&partial, &path))
        .map_err(file("write", &path))
}

/// Run and data directory of `id`.
fn places(dirs: &Dirs, id: &ContainerId) -> (PathBuf, PathBuf) {
    (Table::run(dirs).join(id.as_str()), Table::data(dirs).join(id.as_str()))
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
    let taken = record::names(dirs);
    let owner = |name: &str| taken.iter().find(|(_, other)| other == name).map(|(id, _)| id.clone());
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
    fn a_place_that_is_not_kept_exists_while_its_owner_lives() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let container = Container::reserve(&dirs, ContainerId::random(), Some("barge")).unwrap();
        assert!(container.vsock().parent().unwrap().is_dir() && container.disk().parent().unwrap().is_dir());
        drop(container);
        assert_eq!(std::fs::read_dir(Table::run(&dirs)).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(Table::data(&dirs)).unwrap().count(), 0);
    }

    #[test]
    fn what_is_kept_can_be_found_opened_once_at_a_time_and_removed() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let mut container = Container::reserve(&dirs, ContainerId::random(), Some("barge")).unwrap();
        let id = container.id.clone();
        container.keep(&spec::tests::example(&id), &State::default()).unwrap();
        drop(container);
        assert_eq!(record::find(&dirs, "barge").unwrap().spec.id, id);
        assert_eq!(record::find(&dirs, &id.as_str()[..5]).unwrap().name, "barge");
        assert!(record::find(&dirs, "bar").is_err());
        let open = Container::open(&dirs, &id).unwrap();
        assert!(matches!(Container::open(&dirs, &id), Err(ContainerError::Busy { .. })));
        rename(&dirs, &id, "ferry").unwrap();
        assert!(record::find(&dirs, "ferry").is_ok() && record::find(&dirs, "barge").is_err());
        open.remove();
        assert!(record::list(&dirs).is_empty() && Container::open(&dirs, &id).is_err());
    }

    #[test]
    fn a_name_belongs_to_one_container_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let first = Container::reserve(&dirs, ContainerId::random(), Some("barge")).unwrap();
        let second = Container::reserve(&dirs, ContainerId::random(), Some("barge"));
        assert!(matches!(second, Err(ContainerError::NameTaken { .. })));
        drop(first);
        Container::reserve(&dirs, ContainerId::random(), Some("barge")).unwrap();
    }

    #[test]
    fn bad_names_and_long_paths_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        assert!(matches!(
            Container::reserve(&dirs, ContainerId::random(), Some("../x")),
            Err(ContainerError::Name(_))
        ));
        let long = test_dirs(&base.path().join("x".repeat(100)));
        assert!(matches!(
            Container::reserve(&long, ContainerId::random(), None),
            Err(ContainerError::LongPath { .. })
        ));
    }
}
