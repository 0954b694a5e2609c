//! The VMM process of one container: started, watched through its event pipe, ended.
//!
//! It is a child of ours in a process group of its own, so Ctrl-C at a terminal reaches only us, and it dies with
//! us: it asks the kernel for that before anything else.

pub mod events;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use jailer::cage::Start;
use jailer::child::{self, Child, Namespaces};
use jailer::filter;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use vmm::config::VmConfig;
use warden::WardenConfig;

use crate::network::Interface;
use events::Events;

/// Bytes of the VMM's own messages that an error shows.
const MAX_LOG_SHOWN: u64 = 4 << 10;

/// Why there is no VMM process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A descriptor or file that it needs.
    #[error("cannot prepare the VMM process: {action}")]
    Prepare {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program.
    #[error("cannot start the VMM process {}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What confines a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// The cage of `jailer`, see `docs/security/sandbox.md`.
    Cage,
    /// Nothing: `--no-sandbox`.
    None,
    /// What it makes itself.
    Own,
}

/// What is started.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// The file.
    pub path: &'a Path,
    /// First argument.
    pub verb: &'a str,
    /// What it may do.
    pub confinement: Confinement,
}

impl<'a> Program<'a> {
    /// The VMM in the file `path`.
    pub fn vmm(path: &'a Path, sandboxed: bool) -> Self {
        let confinement = if sandboxed { Confinement::Cage } else { Confinement::None };
        Self { path, verb: "vmm", confinement }
    }

    fn start(&self, arguments: &[String], log: File) -> io::Result<Child> {
        match self.confinement {
            Confinement::Cage => self.start_caged(arguments, log.as_fd()),
            Confinement::None => {
                let arguments = [arguments, &["--no-seccomp".to_owned()]].concat();
                child::spawn(self.path, &arguments, log.as_fd(), Namespaces::None)
            }
            Confinement::Own => {
                let mut command = Command::new(self.path);
                command.args(arguments).process_group(0);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
                Ok(Child::of(command.spawn()?.id()))
            }
        }
    }

    fn start_caged(&self, arguments: &[String], log: BorrowedFd<'_>) -> io::Result<Child> {
        spawn_caged(self.path, arguments, log)
    }
}

/// Starts a program that confines itself, with the namespaces that it cannot make later; `--cage` says who starts it.
pub(crate) fn spawn_caged(program: &Path, arguments: &[String], log: BorrowedFd<'_>) -> io::Result<Child> {
    let (start, namespaces, fallback) = match rustix::process::geteuid().is_root() {
        true => (Start::Root, Namespaces::Pid, Start::Root),
        false => (Start::User, Namespaces::User, Start::Bare),
    };
    let with = |start: Start| [arguments, &["--cage".to_owned(), start.name().to_owned()]].concat();
    child::spawn(program, &with(start), log, namespaces).or_else(|error| match error.raw_os_error() {
        // The host permits no such namespace; what is missing can be seen in `inspect --security`.
        Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::EUSERS | libc::EINVAL) => {
            child::spawn(program, &with(fallback), log, Namespaces::None)
        }
        _ => Err(error),
    })
}

/// A running VMM process, killed on drop.
#[derive(Debug)]
pub struct VmProcess {
    child: Child,
    events: Events,
    log: PathBuf,
}

impl VmProcess {
    /// Starts `program`, the VMM, with `config`. `interfaces` are those that `config.net` names. What the process
    /// writes to stderr goes to the file `log`; `shares` is the descriptor that `config.fs` names.
    ///
    /// Call it from the thread that lives longest: the VMM dies with its parent *thread*.
    pub fn spawn(
        program: &Program<'_>,
        config: &VmConfig,
        interfaces: &[Interface],
        shares: Option<BorrowedFd<'_>>,
        log: &Path,
    ) -> Result<Self, ProcessError> {
        let fds: Vec<_> = interfaces.iter().map(|interface| interface.fd.as_fd()).chain(shares).collect();
        Self::spawn_verb(program, config, &fds, log)
    }

    /// Starts a warden with `config`, which names `namespace`; to be watched and ended like a VMM.
    pub fn spawn_warden(
        config: &WardenConfig,
        namespace: Option<BorrowedFd<'_>>,
        log: &Path,
    ) -> Result<Self, ProcessError> {
        let fds: Vec<_> = namespace.into_iter().collect();
        let program =
            Program { path: Path::new("/proc/self/exe"), verb: warden::VERB, confinement: Confinement::Own };
        Self::spawn_verb(&program, config, &fds, log)
    }

    fn spawn_verb(
        program: &Program<'_>,
        config: &impl Serialize,
        fds: &[BorrowedFd<'_>],
        log: &Path,
    ) -> Result<Self, ProcessError> {
        let prepare = |action| move |source: io::Error| ProcessError::Prepare { action, source };
        let errno = |action| move |error: rustix::io::Errno| prepare(action)(error.into());
        let config_fd = json_file("lighter-vm-config", config).map_err(prepare("write its configuration"))?;
        let (events, events_child) = pipe_with(PipeFlags::CLOEXEC).map_err(errno("make a pipe"))?;
        let _spawning = crate::service::spawning();
        keep_private();
        for fd in [config_fd.as_fd(), events_child.as_fd()].into_iter().chain(fds.iter().copied()) {
            inherit(fd).map_err(prepare("let it inherit a descriptor"))?;
        }
        let log_file = File::create(log).map_err(prepare("make its log"))?;
        let arguments = [
            program.verb.to_owned(),
            "--config-fd".to_owned(),
            config_fd.as_raw_fd().to_string(),
            "--event-fd".to_owned(),
            events_child.as_raw_fd().to_string(),
            "--parent".to_owned(),
            std::process::id().to_string(),
        ];
        let child = program
            .start(&arguments, log_file)
            .map_err(|source| ProcessError::Spawn { path: program.path.to_owned(), source })?;
        Ok(Self { child, events: Events::new(events), log: log.to_owned() })
    }

    /// A process that a test made, with the reading end of its event pipe.
    #[cfg(test)]
    pub(crate) fn of_test(child: std::process::Child, events: OwnedFd, log: &Path) -> Self {
        Self { child: Child::of(child.id()), events: Events::new(events), log: log.to_owned() }
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its events; the descriptor is readable when there are some, or when the process is gone.
    pub fn events(&mut self) -> &mut Events {
        &mut self.events
    }

    /// What to poll for [`Self::events`].
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // Fails only where it is gone already.
        let _ = self.child.kill();
    }

    /// Kills what may be left of it, waits, and says how it ended, with the end of what it wrote to stderr.
    pub fn reap(&mut self) -> String {
        if let Ok(Some(status)) = self.child.try_wait() {
            return self.describe(status);
        }
        // Its pipe is closed, so it is on its way out; a moment shows how, then it is helped.
        for _ in 0..100 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            if let Ok(Some(status)) = self.child.try_wait() {
                return self.describe(status);
            }
        }
        self.kill();
        match self.child.wait() {
            Ok(_) => "the VMM process closed its event pipe and did not end; it was killed".to_owned(),
            Err(error) => format!("the VMM process is lost: {error}"),
        }
    }

    fn describe(&self, status: ExitStatus) -> String {
        let said = crate::text::tail(&self.log, MAX_LOG_SHOWN);
        if status.signal() == Some(libc::SIGSYS) {
            let call = said.lines().find_map(|line| line.strip_prefix(filter::REFUSED));
            let call = call.unwrap_or("unknown");
            return format!("the VMM process was killed by its seccomp filter: system call {call}");
        }
        let how = match (status.code(), status.signal()) {
            (_, Some(signal)) => {
                format!("was killed by signal {signal} ({})", crate::plan::stop_signal::name(signal))
            }
            (Some(code), None) => format!("ended with exit code {code}"),
            (None, None) => "ended".to_owned(),
        };
        if said.is_empty() {
            format!("the VMM process {how}")
        } else {
            format!("the VMM process {how}: {said}")
        }
    }
}

impl Drop for VmProcess {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Starts a program that makes the rest of its cage itself: where root does it, in a PID namespace.
pub(crate) fn spawn_apart(program: &Path, arguments: &[String], log: BorrowedFd<'_>) -> io::Result<Child> {
    match rustix::process::geteuid().is_root() {
        true => child::spawn(program, arguments, log, Namespaces::Pid)
            .or_else(|_| child::spawn(program, arguments, log, Namespaces::None)),
        false => child::spawn(program, arguments, log, Namespaces::None),
    }
}

/// `value` in anonymous memory called `name`, to be read from its beginning.
pub(crate) fn json_file(name: &str, value: &impl serde::Serialize) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut writer = File::from(file);
    serde_json::to_writer(&mut writer, value)?;
    let file = OwnedFd::from(writer);
    seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// Marks everything beyond the standard streams close-on-exec, also what lighter itself inherited from a careless
/// parent. Kernels before 5.11 cannot, which costs nothing but tidiness.
pub(crate) fn keep_private() {
    // SAFETY: the call takes three integers and changes flags of descriptors only.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

pub(crate) fn inherit(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_system_call_is_named() {
        let log = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(log.path(), format!("{}59 of thread vcpu\n", filter::REFUSED)).unwrap();
        let (reader, _) = rustix::pipe::pipe().unwrap();
        let child = Command::new("sh").args(["-c", "kill -SYS $$"]).spawn().unwrap();
        let mut process = VmProcess::of_test(child, reader, log.path());
        assert_eq!(
            process.reap(),
            "the VMM process was killed by its seccomp filter: system call 59 of thread vcpu"
        );
    }
}
