//! Signals as something to poll, so that none interrupts anything at a bad moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::service;

/// Signals that are handed on to the container's process, as `docker run` does by default.
const FORWARDED: [i32; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGWINCH,
];

/// Blocks the forwarded signals in the calling thread and reads them instead; on drop they act as before, and those
/// that nobody read are forgotten. Threads started meanwhile inherit the blocking, child processes do not. In a process
/// that [serves](crate::service) none are blocked and none come.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Begins.
    pub fn block() -> io::Result<Self> {
        // SAFETY: a sigset_t is plain data for which all zeroes is a valid value.
        let (mut set, mut before) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: `set` is a live sigset_t of ours.
        unsafe { libc::sigemptyset(&mut set) };
        for signal in FORWARDED.into_iter().filter(|_| !service::is_serving()) {
            // SAFETY: `set` is initialized by sigemptyset above; the signal numbers are valid.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        // SAFETY: both sets live across the call.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: `set` is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just made `fd`, and nobody else knows it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, before })
    }

    /// The next signal that came; `None` where there is none. Never waits.
    pub fn next(&self) -> Option<i32> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has `size` bytes and lives across the call.
        let count = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(count) != Ok(size) {
            return None;
        }
        // SAFETY: the kernel has filled the whole structure.
        let info = unsafe { info.assume_init() };
        i32::try_from(info.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        while self.next().is_some() {}
        // SAFETY: `before` was filled by pthread_sigmask in `block`; a null pointer asks for no old set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_and_then_gone() {
        let signals = Signals::block().unwrap();
        assert_eq!(signals.next(), None);
        // SAFETY: raise sends to the calling thread, in which the signal is blocked.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!((signals.next(), signals.next()), (Some(libc::SIGUSR1), None));
        // Left unread: were it still pending after the drop, it would end the test process.
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGUSR2) };
        drop(signals);
    }
}
