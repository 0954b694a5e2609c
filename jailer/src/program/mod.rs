//! What `lighter-jailer` does.
//!
//! ```text
//! BASE/EXEC NAME/ID/root     a copy of the program, /dev/{kvm,net/tun,urandom}, what the caller puts there
//! cgroups ─► limits ─► network namespace ─► PID namespace ─► root of its own ─► user ─► no new privileges ─► program
//! ```
//!
//! The program gets `--id ID` and what follows `--`. Its filters are its own.

mod arguments;
mod cgroup;

use std::error::Error;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::process::{Resource, chdir, pivot_root};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_no_new_privs,
    unshare_unsafe,
};

pub use self::arguments::{ArgumentError, Arguments};
use crate::privileges;

/// Devices in the tree: path, major, minor.
const DEVICES: [(&str, u32, u32); 3] =
    [("dev/kvm", 10, 232), ("dev/net/tun", 10, 200), ("dev/urandom", 1, 9)];

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The command line.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// Who asks.
    #[error("it takes root to jail a program")]
    NotRoot,
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A control group.
    #[error("cannot set up the control group file {}", path.display())]
    Cgroup {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No hierarchy has it.
    #[error(
        "this host has no cgroup v{version} with the controller {controller:?}; see /proc/mounts and --cgroup-version"
    )]
    NoController {
        /// Which version was asked for.
        version: u8,
        /// Which controller.
        controller: String,
    },
    /// A step of the way.
    #[error("cannot {action}")]
    Step {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An error and what caused it.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Jails a program and becomes it, or in a new PID namespace its parent, which is done then. Called with no other
/// thread in the process.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<(), JailError> {
    let arguments = Arguments::parse(arguments)?;
    if !rustix::process::geteuid().is_root() {
        return Err(JailError::NotRoot);
    }
    // Nothing that a careless caller left open gets in.
    // SAFETY: the call takes three integers; no descriptor beyond the standard streams is in use here.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    let name = arguments.exec_file.file_name().ok_or(ArgumentError::Missing("--exec-file"))?.to_owned();
    let root = arguments.base.join(&name).join(&arguments.id).join("root");
    make_tree(&root, &arguments, Path::new(&name))?;
    let parent = arguments.parent_cgroup.clone().unwrap_or_else(|| PathBuf::from(&name));
    cgroup::enter(arguments.cgroup_version, &parent, &arguments.id, &arguments.cgroups)?;
    limit(&arguments).map_err(step("set limits"))?;
    if let Some(path) = &arguments.netns {
        let namespace = File::open(path).map_err(file("open", path))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| file("join the network namespace", path)(errno.into()))?;
    }
    let null = File::options().read(true).write(true).open("/dev/null").map_err(step("open /dev/null"))?;
    enter(&root).map_err(step("make the tree the root"))?;
    make_devices(&arguments).map_err(step("make devices"))?;
    if arguments.daemonize {
        daemonize(&null).map_err(step("leave the terminal"))?;
    }
    let pid_file = Path::new("/").join(format!("{}.pid", name.to_string_lossy()));
    if arguments.new_pid_ns {
        if let Some(child) = fork_into_namespace().map_err(step("make a PID namespace"))? {
            return fs::write(&pid_file, child.to_string()).map_err(file("write", &pid_file));
        }
    } else {
        fs::write(&pid_file, std::process::id().to_string()).map_err(file("write", &pid_file))?;
    }
    give_up(&arguments).map_err(step("give up privileges"))?;
    let program = Path::new("/").join(&name);
    let mut command = Command::new(&program);
    command.env_clear().args(["--id", &arguments.id]).args(&arguments.rest);
    Err(file("run", &program)(command.exec()))
}

/// The directories, and the program in them.
fn make_tree(root: &Path, arguments: &Arguments, name: &Path) -> Result<(), JailError> {
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(file("make", root))?;
    let program = root.join(name);
    // Never written through a link that somebody put there.
    let _ = fs::remove_file(&program);
    fs::copy(&arguments.exec_file, &program).map_err(file("copy the program to", &program))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o500)).map_err(file("protect", &program))?;
    for path in [root, &program] {
        chown(path, Some(arguments.uid), Some(arguments.gid)).map_err(file("give away", path))?;
    }
    Ok(())
}

fn limit(arguments: &Arguments) -> io::Result<()> {
    privileges::limit(Resource::Core, 0)?;
    privileges::limit(Resource::Nofile, arguments.files)?;
    arguments.file_bytes.map_or(Ok(()), |bytes| privileges::limit(Resource::Fsize, bytes))
}

/// Makes `root` the root directory, in a mount namespace of our own.
fn enter(root: &Path) -> io::Result<()> {
    // SAFETY: there is one thread, and nothing relies on sharing mounts with others.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // What becomes a root must be a mount.
    mount_bind(root, root)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}

fn make_devices(arguments: &Arguments) -> io::Result<()> {
    let own = |path: &Path| chown(path, Some(arguments.uid), Some(arguments.gid));
    for directory in ["/dev", "/dev/net", "/run"] {
        fs::create_dir_all(directory)?;
        own(Path::new(directory))?;
    }
    for (path, major, minor) in DEVICES {
        let path = Path::new("/").join(path);
        let _ = fs::remove_file(&path);
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::CharacterDevice, mode, rustix::fs::makedev(major, minor))?;
        own(&path)?;
    }
    Ok(())
}

/// A session of our own, with nothing at the standard streams.
fn daemonize(null: &File) -> io::Result<()> {
    // A leader of a group cannot make a session; whoever waits for us learns that we are under way.
    if fork()?.is_some() {
        std::process::exit(0);
    }
    rustix::process::setsid()?;
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    Ok(rustix::stdio::dup2_stderr(null)?)
}

/// Goes on as the first process of a PID namespace; its parent gets its process ID.
fn fork_into_namespace() -> io::Result<Option<libc::pid_t>> {
    // SAFETY: there is one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID)? };
    fork()
}

fn fork() -> io::Result<Option<libc::pid_t>> {
    // SAFETY: there is one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        child if child < 0 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(child)),
    }
}

fn give_up(arguments: &Arguments) -> io::Result<()> {
    privileges::become_user(arguments.uid, arguments.gid)?;
    let _ = privileges::root_is_nobody();
    privileges::keep_only(CapabilitySet::empty())?;
    Ok(set_no_new_privs(true)?)
}

fn step(action: &'static str) -> impl FnOnce(io::Error) -> JailError {
    move |source| JailError::Step { action, source }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JailError + use<> {
    let path = path.to_owned();
    move |source| JailError::File { action, path, source }
}
