//! The device's own epoll set, which the event loop polls as one descriptor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken in one call. What is left keeps the epoll descriptor readable, so that the event loop comes
/// back after it has served other devices.
const EVENTS_PER_CALL: usize = 64;

/// Gives each descriptor a token of its own, from 1 on. None is used twice, so an event that is late cannot
/// reach another descriptor.
#[derive(Debug, Default)]
pub struct Tokens {
    last: u64,
}

impl Tokens {
    /// A token that was not used before. 64 bits do not run out.
    pub fn next(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        self.last
    }
}

/// An epoll set.
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Readable when something in the set is ready.
    pub fn raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Adds `fd`; it leaves the set when its last descriptor is closed.
    pub fn add(&self, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    /// Changes what `fd` is polled for. What is ready already is told again.
    pub fn modify(&self, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, token))
    }

    /// Tokens and events that are ready now; never waits.
    pub fn ready(&self) -> io::Result<Vec<(u64, EventSet)>> {
        let mut events = [EpollEvent::default(); EVENTS_PER_CALL];
        let count = self.epoll.wait(0, &mut events)?;
        Ok(events.iter().take(count).map(|event| (event.data(), event.event_set())).collect())
    }
}
