//! The file server of one machine as a process: started, watched, ended.
//!
//! ```text
//! keeper ── plan (JSON) ──► lighter share ── "" or an error ──► keeper
//!   └── one end of a socket pair ──► VMM        └── the other end: ends when the VMM's is closed
//! ```
//!
//! It dies with the keeper, too. What is left when somebody kills it is a guest whose shares fail with ENOTCONN.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jailer::child::Child;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shares::Plan;

use super::VolumeError;
use crate::keeper::spawn::inherited;
use crate::process::{inherit, json_file, keep_private, spawn_apart};

/// Name of the verb that it runs as.
pub const VERB: &str = "share";
/// Longest plan and longest error that are read.
const MAX_TEXT: u64 = 1 << 20;

/// What it gets to work on the guest's last requests, when the VMM is gone.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// A running file server, ended on drop: to be dropped after the VMM.
#[derive(Debug)]
pub struct FileServer {
    pid: u32,
    process: OwnedFd,
    socket: Option<OwnedFd>,
    ending: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl FileServer {
    /// Starts a server of `plan` and waits until it serves. `lost` is told if it ends before it is dropped, other than
    /// because the machine did. What it writes to stderr goes to the file `log`.
    ///
    /// Call it from the thread that lives longest: the server dies with its parent *thread*.
    pub fn spawn(
        plan: &Plan,
        log: &Path,
        lost: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, VolumeError> {
        let failed = |action: &'static str| {
            move |error: io::Error| VolumeError::Server(format!("cannot {action}: {error}"))
        };
        let errno = |action| move |error: rustix::io::Errno| failed(action)(error.into());
        let plan = json_file("lighter-shares", plan).map_err(failed("write its plan"))?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(errno("make a socket pair"))?;
        let (status, status_child) = pipe_with(PipeFlags::CLOEXEC).map_err(errno("make a pipe"))?;
        keep_private();
        for fd in [plan.as_fd(), theirs.as_fd(), status_child.as_fd()] {
            inherit(fd).map_err(failed("let it inherit a descriptor"))?;
        }
        let log = File::create(log).map_err(failed("make its log"))?;
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().to_string();
        let parent = std::process::id().to_string();
        let [plan_fd, socket_fd, status_fd] =
            [plan.as_fd(), theirs.as_fd(), status_child.as_fd()].map(number);
        let arguments = [
            [VERB, "--plan-fd", &plan_fd, "--socket-fd", &socket_fd].as_slice(),
            &["--status-fd", &status_fd, "--parent", &parent],
        ]
        .concat();
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        let child =
            spawn_apart(Path::new("/proc/self/exe"), &arguments, log.as_fd()).map_err(failed("start it"))?;
        drop((theirs, status_child));
        let mut server = Self::watch(child, ours, lost)?;
        let mut text = String::new();
        File::from(status).take(MAX_TEXT).read_to_string(&mut text).map_err(failed("hear from it"))?;
        match text.as_str() {
            READY => Ok(server),
            error => {
                server.end();
                let error = if error.is_empty() { "it ended before it served" } else { error };
                Err(VolumeError::Server(error.to_owned()))
            }
        }
    }

    fn watch(
        mut child: Child,
        socket: OwnedFd,
        lost: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, VolumeError> {
        let failed = |error: io::Error| VolumeError::Server(format!("cannot watch it: {error}"));
        let pid = child.id();
        let process = Pid::from_raw(pid as i32).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let process = pidfd_open(process, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let ending = Arc::new(AtomicBool::new(false));
        let expected = ending.clone();
        let watcher = std::thread::Builder::new()
            .name("shares".into())
            .stack_size(64 << 10)
            .spawn(move || {
                if let Ok(status) = child.wait()
                    && !status.success()
                    && !expected.load(Ordering::Acquire)
                {
                    lost(describe(status));
                }
            })
            .map_err(failed)?;
        Ok(Self { pid, process, socket: Some(socket), ending, watcher: Some(watcher) })
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// The VMM's end of the connection, until [`FileServer::handed_over`].
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// The VMM has its end: from now on the server ends with the VMM.
    pub fn handed_over(&mut self) {
        self.socket = None;
    }

    fn end(&mut self) {
        self.ending.store(true, Ordering::Release);
        // Without the VMM it ends by itself, after what the guest wrote last: a mapping's pages, for example.
        self.socket = None;
        let timeout = Timespec::try_from(LAST_REQUESTS).ok();
        let _ = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], timeout.as_ref());
        // Fails only where it is gone already.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a server says that serves.
const READY: &str = "ready";

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), None) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The hidden verb: serves to the end. Called first thing in `main`, with no other thread in the process; the
/// descriptors are the parent's gift.
pub fn serve(plan: RawFd, socket: RawFd, status: RawFd, parent: i32) -> io::Result<()> {
    let [plan, socket, status] = [plan, socket, status].map(inherited);
    let (socket, mut status) = (socket?, File::from(status?));
    let mut text = Vec::new();
    File::from(plan?).take(MAX_TEXT).read_to_end(&mut text)?;
    let plan: Plan = serde_json::from_slice(&text)?;
    match shares::enter(&plan, Pid::from_raw(parent)) {
        Ok(files) => {
            status.write_all(READY.as_bytes())?;
            drop(status);
            shares::serve(files, &socket)
        }
        Err(error) => {
            status.write_all(vmm::text::with_causes(&error).as_bytes())?;
            Err(io::Error::other(error))
        }
    }
}
