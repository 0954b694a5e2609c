//! The one poll of a life: who is waited for in which state, and until when.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::hub::Someone;
use super::life::{Agent, Life, State};
use crate::session::SessionError;

/// Somebody who may have something for us, or take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    VmEvents,
    Listener,
    Link,
    Hub(Someone),
    Health,
}

impl Life<'_> {
    /// Waits until somebody is ready or a deadline is reached.
    pub(super) fn wait(&self) -> Result<Vec<Source>, SessionError> {
        let mut fds = vec![(Source::Signals, PollFd::new(self.setup.signals, PollFlags::IN))];
        if self.vm_end.is_none() {
            fds.push((Source::VmEvents, PollFd::from_borrowed_fd(self.vm.events_fd(), PollFlags::IN)));
        }
        if let (Agent::Connects(listener), None) = (&self.setup.agent, &self.link) {
            fds.push((Source::Listener, PollFd::new(listener, PollFlags::IN)));
        }
        if let Some(link) = self.link.as_ref().filter(|_| !self.link_ended) {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.setup.hub.has_room());
            flags.set(PollFlags::OUT, link.is_waiting());
            if !flags.is_empty() {
                fds.push((Source::Link, PollFd::new(link, flags)));
            }
        }
        for (someone, fd, flags) in self.setup.hub.fds() {
            fds.push((Source::Hub(someone), PollFd::from_borrowed_fd(fd, flags)));
        }
        if let Some(fd) = self.setup.health.as_ref().and_then(|checker| checker.fd()) {
            fds.push((Source::Health, PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let (sources, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        match poll(&mut fds, self.timeout().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(SessionError::Host { action: "wait for the container", source: error.into() });
            }
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    fn timeout(&self) -> Option<Timespec> {
        let boot = self.is_coming_up().then(|| self.boot.deadline());
        let ttl = self.setup.ttl.map(|(warning, end)| warning.min(end));
        let health = self.setup.health.as_ref().filter(|_| self.state == State::Running);
        let deadlines = [boot, ttl, health.map(|checker| checker.deadline()), self.term_until, self.kill_at];
        let deadline = deadlines.into_iter().flatten().min()?;
        Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()
    }
}
