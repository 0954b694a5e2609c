//! The cage around a VMM process: entered once, by its only thread, after it opened what its VM was given.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{self, Mode, OFlags};
use rustix::process::{Resource, Signal};
use rustix::thread::{CapabilitySet, UnshareFlags, set_no_new_privs, unshare_unsafe};

use crate::{END_UID, FIRST_UID, landlock, privileges, root};

/// Who starts the process, which decides what it can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Root: the process gets a user ID of its own.
    Root,
    /// A user, who made it in a user namespace.
    User,
    /// A user whom the host permits no user namespace: what is left is Landlock, limits and system call filters.
    Bare,
}

impl FromStr for Start {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Start::Root, Start::User, Start::Bare].into_iter().find(|start| start.name() == text).ok_or(())
    }
}

impl Start {
    /// As the command line says it.
    pub fn name(self) -> &'static str {
        match self {
            Start::Root => "root",
            Start::User => "user",
            Start::Bare => "bare",
        }
    }
}

/// What the process may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Descriptors.
    pub files: u64,
    /// Size of the largest file it may write, in bytes.
    pub file_bytes: u64,
    /// Private memory that it may map, in bytes.
    pub data_bytes: u64,
    /// Threads.
    pub threads: u64,
}

/// A layer that this host does not permit.
#[derive(Debug, thiserror::Error)]
#[error("not confined by {layer}")]
pub struct Missing {
    /// Which one.
    pub layer: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// Something of the host that has a name inside: an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// A socket that can be connected to.
    Socket(PathBuf),
    /// A file or directory that can be read.
    Readable(PathBuf),
    /// A directory in which files can be made, changed and removed.
    Writable(PathBuf),
}

impl Given {
    /// Where it is, outside and inside.
    pub fn path(&self) -> &Path {
        match self {
            Given::Socket(path) | Given::Readable(path) | Given::Writable(path) => path,
        }
    }
}

/// What is left to a process.
#[derive(Clone, Debug)]
pub struct Cage {
    /// Who starts the process.
    pub start: Start,
    /// What has a name inside. With a directory to write in it stays the user that it is, else root's processes get a
    /// user ID of their own.
    pub given: Vec<Given>,
    /// It keeps the host's network. It may not wait for connections there.
    pub network: bool,
    /// What it may use.
    pub limits: Limits,
}

/// Confines this process, which has one thread: what `cage` does not leave to it has no name any more. Gives what the
/// host did not permit.
///
/// The parent's death signal is forgotten by the kernel meanwhile: to be asked for afterwards.
pub fn enter(cage: &Cage) -> Vec<Missing> {
    let Cage { start, given, network, limits } = cage;
    let (start, writes) = (*start, given.iter().any(|given| matches!(given, Given::Writable(_))));
    let mut attempts = Attempts(Vec::new());
    // The way to the maps of a user namespace, once nothing else has a name.
    let own_process =
        fs::open("/proc/self", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let process_id = std::fs::read_link("/proc/self");
    if start != Start::Bare {
        if !network {
            attempts.note("a network namespace", unshare(UnshareFlags::NEWNET));
        }
        attempts.note("an IPC namespace", unshare(UnshareFlags::NEWIPC));
        attempts.note("a UTS namespace", unshare(UnshareFlags::NEWUTS).and_then(|()| name()));
        attempts.note("a root of its own", unshare(UnshareFlags::NEWNS).and_then(|()| root::make(given)));
    }
    if start == Start::Root {
        // Last: the namespaces above belong to root, so that nothing in here has any power over them.
        if !writes {
            attempts.note("a user ID of its own", process_id.and_then(|id| become_own_user(&id)));
        }
        let own = own_process.as_ref().map_err(|errno| io::Error::from(*errno));
        attempts.note("a user namespace", own.and_then(|own| own_user_namespace(own.as_fd())));
    }
    drop(own_process);
    attempts.note("limits", apply(limits, start));
    let _ = privileges::root_is_nobody();
    attempts.note("the loss of all capabilities", privileges::keep_only(CapabilitySet::empty()));
    attempts.note("no_new_privs", set_no_new_privs(true).map_err(io::Error::from));
    attempts.note("Landlock", landlock::restrict(given, *network));
    attempts.note("being hidden from its user", privileges::set_dumpable(false));
    attempts.0
}

struct Attempts(Vec<Missing>);

impl Attempts {
    fn note(&mut self, layer: &'static str, result: io::Result<()>) {
        self.0.extend(result.err().map(|source| Missing { layer, source }));
    }
}

/// A user ID that no other process of the host has, made of the process ID that the host knows.
fn become_own_user(process_id: &Path) -> io::Result<()> {
    let pid: u32 = process_id.to_string_lossy().parse().map_err(io::Error::other)?;
    let id = FIRST_UID.checked_add(pid).filter(|id| *id < END_UID).ok_or(io::ErrorKind::InvalidData)?;
    privileges::become_user(id, id)?;
    // Until the maps of the user namespace are written, which belong to root otherwise.
    privileges::set_dumpable(true)
}

/// A user namespace that knows this user only, as its root. `process` is this process's directory in `/proc`.
fn own_user_namespace(process: BorrowedFd<'_>) -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    let write = |file: &str, text: String| {
        let file = fs::openat(process, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).write_all(text.as_bytes())
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

fn unshare(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: there is one thread, and nothing in this process relies on sharing namespaces with others.
    Ok(unsafe { unshare_unsafe(what) }?)
}

fn name() -> io::Result<()> {
    Ok(rustix::system::sethostname(b"vm")?)
}

fn apply(limits: &Limits, start: Start) -> io::Result<()> {
    privileges::limit(Resource::Core, 0)?;
    privileges::limit(Resource::Nofile, limits.files)?;
    // SAFETY: a signal that is ignored runs no code. What is too large fails with EFBIG then.
    unsafe { libc::signal(Signal::XFSZ.as_raw(), libc::SIG_IGN) };
    privileges::limit(Resource::Fsize, limits.file_bytes)?;
    privileges::limit(Resource::Data, limits.data_bytes)?;
    match start {
        // All of the user's processes count there.
        Start::Bare => Ok(()),
        Start::Root | Start::User => privileges::limit(Resource::Nproc, limits.threads),
    }
}
