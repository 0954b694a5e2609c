//! The caller's side of a process in a container: its streams, its terminal, its signals.
//!
//! Waits in one poll, and for nobody else: a caller who does not read slows the process down, a process that does not
//! read slows the caller's stdin down, and signals always get through.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use agent_protocol::message::HostMessage;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::detach::DetachKeys;
use super::escalation::{Action, Escalation};
use super::output::Output;
use super::peer::{Peer, Said};
use super::signals::Signals;
use super::stdin::Stdin;
use super::terminal::{self, RawMode};
use super::{Outcome, SessionError};
use crate::trace::Trace;

/// Bytes that wait for a caller who does not read, before the process is made to wait.
const MAX_PENDING: usize = 1 << 20;

/// The caller's streams.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// Handed on if there is one (`-i`).
    pub stdin: Option<BorrowedFd<'a>>,
    /// The process's stdout goes there.
    pub stdout: BorrowedFd<'a>,
    /// The process's stderr goes there.
    pub stderr: BorrowedFd<'a>,
}

/// How a caller leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The process ended.
    Ended(Outcome),
    /// The process goes on.
    Detached,
}

/// What a caller has to do with the process.
#[derive(Clone, Debug)]
pub struct Manner {
    /// The process has a terminal, and the caller's becomes it.
    pub terminal: bool,
    /// Signals are handed on.
    pub signals: bool,
    /// The process is asked to end when nobody reads its output any more.
    pub owner: bool,
    /// Keys that leave it.
    pub detach_keys: DetachKeys,
}

/// Somebody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Peer,
    Stdin,
    Stdout,
    Stderr,
}

/// A caller with a process.
pub struct Caller<'a> {
    peer: Peer,
    peer_ended: bool,
    manner: Manner,
    streams: Streams<'a>,
    signals: &'a Signals,
    trace: &'a mut Trace,
    notice: &'a dyn Fn(&str),
    stdin: Option<Stdin<'a>>,
    stdout: Output<'a>,
    stderr: Output<'a>,
    raw_mode: Option<RawMode<'a>>,
    started: bool,
    ended: Option<Outcome>,
    escalation: Escalation,
}

impl<'a> Caller<'a> {
    /// A caller at whose other end is `peer`.
    pub fn new(
        peer: Peer,
        manner: Manner,
        streams: Streams<'a>,
        signals: &'a Signals,
        trace: &'a mut Trace,
        notice: &'a dyn Fn(&str),
    ) -> Self {
        Self {
            peer,
            peer_ended: false,
            manner,
            streams,
            signals,
            trace,
            notice,
            stdin: streams.stdin.map(Stdin::new),
            stdout: Output::new(streams.stdout),
            stderr: Output::new(streams.stderr),
            raw_mode: None,
            started: false,
            ended: None,
            escalation: Escalation::default(),
        }
    }

    /// Stays until the process ends or the caller detaches.
    pub fn run(mut self) -> Result<Leave, SessionError> {
        loop {
            let written = self.stdout.pending() == 0 && self.stderr.pending() == 0;
            match &self.ended {
                Some(outcome) if written => return Ok(Leave::Ended(outcome.clone())),
                None if self.peer_ended && written => return self.lost(),
                _ => {}
            }
            for source in self.wait()? {
                if let Some(leave) = self.handle(source)? {
                    return Ok(leave);
                }
            }
        }
    }

    /// The other end closed without a word.
    fn lost(&self) -> Result<Leave, SessionError> {
        match self.peer {
            Peer::Keeper(_) => Err(SessionError::Lost("its keeper ended".to_owned())),
            Peer::Proxy(_) => {
                Err(SessionError::Lost("the server went away; the process may go on".to_owned()))
            }
            // The container ended, and everything in it was killed.
            Peer::Agent(_) => Ok(Leave::Ended(Outcome::Interrupted { signal: libc::SIGKILL })),
        }
    }

    fn wait(&self) -> Result<Vec<Source>, SessionError> {
        let mut fds = vec![(Source::Signals, PollFd::new(self.signals, PollFlags::IN))];
        if !self.peer_ended && self.ended.is_none() {
            let mut flags = PollFlags::empty();
            let reading = self.stdout.pending() < MAX_PENDING && self.stderr.pending() < MAX_PENDING;
            flags.set(PollFlags::IN, reading);
            flags.set(PollFlags::OUT, self.peer.is_waiting());
            if !flags.is_empty() {
                fds.push((Source::Peer, PollFd::new(&self.peer, flags)));
            }
        }
        let may_read = self.started && self.ended.is_none() && !self.peer_ended && !self.peer.is_waiting();
        if let Some(stdin) = self.stdin.as_ref().filter(|stdin| may_read && stdin.wants_to_read()) {
            fds.push((Source::Stdin, PollFd::new(stdin, PollFlags::IN)));
        }
        for (source, output) in [(Source::Stdout, &self.stdout), (Source::Stderr, &self.stderr)] {
            if output.pending() > 0 {
                fds.push((source, PollFd::new(output, PollFlags::OUT)));
            }
        }
        let (sources, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(SessionError::Host { action: "wait for the process", source: error.into() });
            }
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    fn handle(&mut self, source: Source) -> Result<Option<Leave>, SessionError> {
        match source {
            Source::Signals => return self.on_signals(),
            Source::Peer => match self.peer.receive()? {
                None => self.peer_ended = true,
                Some(said) => {
                    for said in said {
                        self.on_said(said)?;
                    }
                }
            },
            Source::Stdin => return self.on_stdin(),
            Source::Stdout => {
                if self.stdout.write().is_err() {
                    if !self.manner.owner {
                        return Ok(Some(Leave::Detached));
                    }
                    self.peer.end(false)?;
                }
            }
            // Nobody reads the errors; that alone is no reason to stop.
            Source::Stderr => drop(self.stderr.write()),
        }
        Ok(None)
    }

    fn on_signals(&mut self) -> Result<Option<Leave>, SessionError> {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGWINCH {
                if let Some(size) = terminal::size(self.streams.stdout).filter(|_| self.manner.terminal) {
                    self.peer.say(HostMessage::Resize(size))?;
                }
                continue;
            }
            // The process is gone, and what it wrote is not wanted any more.
            if let Some(outcome) = &self.ended {
                return Ok(Some(Leave::Ended(outcome.clone())));
            }
            if !self.manner.signals {
                return Ok(Some(Leave::Detached));
            }
            match self.escalation.signal(signal, Instant::now()) {
                Action::Kill => self.peer.end(true)?,
                Action::Forward => self.peer.say(HostMessage::Signal(signal))?,
            }
        }
        Ok(None)
    }

    fn on_said(&mut self, said: Said) -> Result<(), SessionError> {
        match said {
            Said::Started => {
                self.started = true;
                if let Some(stdin) =
                    self.streams.stdin.filter(|_| self.manner.terminal && self.raw_mode.is_none())
                {
                    self.raw_mode = RawMode::enter(stdin).map_err(|source| SessionError::Host {
                        action: "put the terminal into raw mode",
                        source,
                    })?;
                }
            }
            Said::Stdout(bytes) => self.stdout.push(&bytes),
            Said::Stderr(bytes) => self.stderr.push(&bytes),
            Said::StdinCredit(bytes) => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.add_credit(bytes);
                }
            }
            Said::Notice(text) => (self.notice)(&text),
            Said::Phases(ends, cpu_ns, used) => {
                self.trace.take_over(ends, cpu_ns);
                self.trace.set_used(used);
            }
            Said::Ended(outcome) => {
                self.raw_mode = None;
                self.ended = Some(outcome);
            }
        }
        Ok(())
    }

    fn on_stdin(&mut self) -> Result<Option<Leave>, SessionError> {
        match self.stdin.as_mut().and_then(Stdin::read) {
            Some(HostMessage::Stdin(bytes)) if self.manner.terminal => {
                let Some(passed) = self.manner.detach_keys.filter(&bytes) else {
                    return Ok(Some(Leave::Detached));
                };
                if !passed.is_empty() {
                    self.peer.say(HostMessage::Stdin(passed))?;
                }
            }
            Some(message) => self.peer.say(message)?,
            None => {}
        }
        Ok(None)
    }
}
