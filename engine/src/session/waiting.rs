//! The one poll of a run: who is waited for in which state, and until when.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::SessionError;
use super::stdin::Stdin;
use super::supervisor::{Agent, Session, State};

/// Bytes that wait for a caller who does not read, before the guest is made to wait.
const MAX_PENDING: usize = 1 << 20;

/// Somebody who may have something for us, or take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    VmEvents,
    Listener,
    Link,
    Stdin,
    Stdout,
    Stderr,
}

impl Session<'_> {
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
            let reading = self.stdout.pending() < MAX_PENDING && self.stderr.pending() < MAX_PENDING;
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reading);
            flags.set(PollFlags::OUT, link.is_waiting());
            if !flags.is_empty() {
                fds.push((Source::Link, PollFd::new(link, flags)));
            }
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|stdin| self.may_read(stdin)) {
            fds.push((Source::Stdin, PollFd::new(stdin, PollFlags::IN)));
        }
        for (source, output) in [(Source::Stdout, &self.stdout), (Source::Stderr, &self.stderr)] {
            if output.pending() > 0 {
                fds.push((source, PollFd::new(output, PollFlags::OUT)));
            }
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

    fn may_read(&self, stdin: &Stdin<'_>) -> bool {
        let link_has_room = self.link.as_ref().is_some_and(|link| !link.is_waiting());
        self.state == State::Running && !self.link_ended && link_has_room && stdin.wants_to_read()
    }

    fn timeout(&self) -> Option<Timespec> {
        let boot = self.is_coming_up().then(|| self.boot.deadline());
        let deadline = [boot, self.kill_at].into_iter().flatten().min()?;
        Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()
    }
}
