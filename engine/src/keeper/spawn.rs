//! Starting a keeper: this program again, in the background, with the container's locks and the first client.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::container::Container;
use crate::dirs::Dirs;
use crate::process::keep_private;
use crate::service;

/// Name of the verb that a keeper runs as.
pub const VERB: &str = "keep";

/// Starts the keeper of `container`, which is its owner from then on, with `first` as a client.
pub fn spawn(dirs: &Dirs, container: Container, first: Option<UnixStream>) -> io::Result<()> {
    let log = File::create(container.keeper_log())?;
    let [run_lock, data_lock] = container.lock_fds();
    let mut command = Command::new("/proc/self/exe");
    command.arg(VERB).arg(container.id.as_str());
    command.args(["--run-lock", &run_lock.to_string(), "--data-lock", &data_lock.to_string()]);
    let _spawning = service::spawning();
    keep_private();
    if let Some(first) = &first {
        command.arg("--client").arg(first.as_raw_fd().to_string());
        inherit(first.as_fd())?;
    }
    for fd in [run_lock, data_lock] {
        // SAFETY: the container owns its locks' descriptors and lives until the end of this function.
        inherit(unsafe { BorrowedFd::borrow_raw(fd) })?;
    }
    command.env("LIGHTER_ROOT", &dirs.data).env("LIGHTER_RUN", &dirs.run);
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = command.spawn()?;
    container.bequeath();
    reap(child);
    Ok(())
}

/// Collects the child when it ends, for a parent that lives longer.
fn reap(mut child: std::process::Child) {
    let _ =
        std::thread::Builder::new().name("reaper".into()).stack_size(32 << 10).spawn(move || child.wait());
}

fn inherit(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfd(fd, FdFlags::empty())?)
}

/// A descriptor that the parent process has left us under `number`.
///
/// # Errors
/// Where there is none, or one of the standard streams.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes integers here and fails for what is no descriptor.
    if number <= libc::STDERR_FILENO || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{number} is no inherited descriptor"),
        ));
    }
    // SAFETY: it is open, and by contract of the hidden verb nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
