//! Ends the VM when the process is told to end: SIGTERM and SIGINT, received by descriptor.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use crate::config::VmExit;
use crate::report::Reporter;

/// Signals that end the VM.
const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// The signals, blocked and readable.
pub struct StopSignals(OwnedFd);

impl StopSignals {
    /// Blocks the signals in this thread and those it makes later. Before the first other thread.
    pub fn open() -> io::Result<Self> {
        // SAFETY: all zero is a valid sigset_t, and the calls below get pointers to this local only.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a local sigset_t; signal numbers are valid.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in SIGNALS {
            // SAFETY: as above.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is initialised; a null old set is allowed.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: -1 asks for a new descriptor; `set` is initialised.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call just made this descriptor and nobody else has it.
        Ok(StopSignals(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Readable once such a signal came.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What the event loop needs to end the VM on such a signal.
    pub fn subscriber(self, reporter: Reporter) -> impl MutEventSubscriber {
        Stopper { signals: self.0, reporter }
    }
}

struct Stopper {
    signals: OwnedFd,
    reporter: Reporter,
}

impl Stopper {
    fn fd(&self) -> RawFd {
        self.signals.as_raw_fd()
    }
}

impl MutEventSubscriber for Stopper {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        // One signal is enough, so what it was is not read; it must not wake the loop again.
        let _ = ops.remove(Events::empty_raw(self.fd()));
        self.reporter.exit(VmExit::Stopped);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.fd(), EventSet::IN)) {
            eprintln!("lighter-vmm: cannot wait for signals: {error}");
        }
    }
}
