//! The owner of a run: what happens when somebody is ready.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_protocol::AGENT_PORT;
use agent_protocol::message::{ContainerPlan, ExitStatus, HostMessage};
use images::Image;
use vmm::config::{VmConfig, VmEvent};

use super::boot::{Boot, console_tail, describe};
use super::escalation::{Action, Escalation};
use super::link::{Link, LinkError, Received};
use super::output::Output;
use super::signals::Signals;
use super::stdin::Stdin;
use super::terminal::{self, RawMode};
use super::waiting::Source;
use super::{Outcome, SessionError};
use crate::process::VmProcess;
use crate::process::events::Read;
use crate::trace::Trace;

/// What a machine may take to end after it closed the session, and a process after it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

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

/// How a session with the agent comes about.
#[derive(Debug)]
pub enum Agent {
    /// The guest boots and its agent connects here.
    Connects(UnixListener),
    /// The guest goes on from a template and its agent listens behind this socket of the vsock device.
    Listens(PathBuf),
}

/// What a session needs beside its machine.
pub struct Setup<'a> {
    /// The machine's configuration.
    pub config: &'a VmConfig,
    /// Where the agent is found.
    pub agent: Agent,
    /// Makes the plan at the moment when it is sent.
    pub plan: &'a dyn Fn() -> ContainerPlan,
    /// Asks the process to end.
    pub stop_signal: i32,
    /// The guest's console, for error messages.
    pub console: PathBuf,
    /// Kept from garbage collection until the machine has opened its disks.
    pub until_started: Option<Image>,
    /// The caller's signals, already blocked.
    pub signals: &'a Signals,
    /// The caller's streams.
    pub streams: Streams<'a>,
    /// Where phases are noted.
    pub trace: &'a mut Trace,
}

/// How far a run is; see the header of [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Booting,
    Greeting,
    Starting,
    Running,
    Draining(ExitStatus),
}

/// One run in progress. The machine is killed when it is dropped.
pub struct Session<'a> {
    pub(super) setup: Setup<'a>,
    pub(super) vm: VmProcess,
    /// How the machine's process ended.
    pub(super) vm_end: Option<String>,
    pub(super) boot: Boot,
    pub(super) state: State,
    pub(super) link: Option<Link>,
    pub(super) link_ended: bool,
    pub(super) stdin: Option<Stdin<'a>>,
    pub(super) stdout: Output<'a>,
    pub(super) stderr: Output<'a>,
    pub(super) raw_mode: Option<RawMode<'a>>,
    pub(super) has_terminal: bool,
    pub(super) first_byte: bool,
    escalation: Escalation,
    pub(super) kill_at: Option<Instant>,
    /// Nobody reads the process's output, so it was asked to end.
    unread: bool,
}

impl<'a> Session<'a> {
    /// A session with the machine `vm`, which was just started.
    pub fn new(setup: Setup<'a>, vm: VmProcess) -> Self {
        Self {
            boot: Boot::new(setup.config, Instant::now()),
            vm,
            vm_end: None,
            state: State::Booting,
            link: None,
            link_ended: false,
            stdin: setup.streams.stdin.map(Stdin::new),
            stdout: Output::new(setup.streams.stdout),
            stderr: Output::new(setup.streams.stderr),
            raw_mode: None,
            has_terminal: false,
            first_byte: false,
            escalation: Escalation::default(),
            kill_at: None,
            unread: false,
            setup,
        }
    }

    /// Runs to the end of the container's process.
    pub fn run(mut self) -> Result<Outcome, SessionError> {
        loop {
            if let Some(outcome) = self.finished()? {
                return Ok(outcome);
            }
            for source in self.wait()? {
                if let Some(outcome) = self.handle(source)? {
                    return Ok(outcome);
                }
            }
            self.check_deadlines()?;
        }
    }

    /// The end, if it is reached and everything is written.
    fn finished(&mut self) -> Result<Option<Outcome>, SessionError> {
        let written = self.stdout.pending() == 0 && self.stderr.pending() == 0;
        if let (State::Draining(status), true) = (self.state, written) {
            return Ok(Some(Outcome::Exited(status)));
        }
        let silent = self.link.is_none() || self.link_ended;
        match &self.vm_end {
            // It did not end when asked to, so its machine was ended: nothing is lost that anybody wanted.
            Some(_) if silent && self.unread => Ok(Some(Outcome::Interrupted { signal: libc::SIGKILL })),
            Some(end) if silent && written => Err(self.lost(end)),
            _ => Ok(None),
        }
    }

    /// The machine is gone and everything that it sent was handled.
    fn lost(&self, end: &str) -> SessionError {
        let console = &self.setup.console;
        match (self.state, self.boot.exit()) {
            (State::Booting | State::Greeting, Some(_)) => {
                SessionError::Boot(self.boot.diagnosis(false, console))
            }
            (State::Booting | State::Greeting, None) => {
                SessionError::Boot(format!("{end}, before its guest was up{}", console_tail(console)))
            }
            (_, Some(exit)) => SessionError::Lost(format!(
                "the guest ended before its process did: {}{}",
                describe(exit),
                console_tail(console)
            )),
            (_, None) => SessionError::Lost(format!("{end}{}", console_tail(console))),
        }
    }

    fn handle(&mut self, source: Source) -> Result<Option<Outcome>, SessionError> {
        match source {
            Source::Signals => return self.on_signals(),
            Source::VmEvents => self.on_vm_events()?,
            Source::Listener => self.on_connection()?,
            Source::Link => return self.on_link(),
            Source::Stdin => self.on_stdin()?,
            Source::Stdout => {
                if self.stdout.write().is_err() {
                    self.stop()?;
                }
            }
            // Nobody reads the errors; that alone is no reason to stop.
            Source::Stderr => drop(self.stderr.write()),
        }
        Ok(None)
    }

    fn on_signals(&mut self) -> Result<Option<Outcome>, SessionError> {
        while let Some(signal) = self.setup.signals.next() {
            if signal == libc::SIGWINCH {
                self.resize()?;
                continue;
            }
            match (self.state, self.escalation.signal(signal, Instant::now())) {
                (State::Booting | State::Greeting, _) => return Ok(Some(Outcome::Interrupted { signal })),
                (State::Draining(status), _) => return Ok(Some(Outcome::Exited(status))),
                (_, Action::Kill) => return Ok(Some(Outcome::Interrupted { signal: libc::SIGKILL })),
                (_, Action::Forward) => self.send(&HostMessage::Signal(signal))?,
            }
        }
        Ok(None)
    }

    fn resize(&mut self) -> Result<(), SessionError> {
        match terminal::size(self.setup.streams.stdout) {
            Some(size) if self.has_terminal => self.send(&HostMessage::Resize(size)),
            _ => Ok(()),
        }
    }

    fn on_vm_events(&mut self) -> Result<(), SessionError> {
        let Read::Events(events) = self.vm.events().read() else {
            self.vm_end = Some(self.vm.reap());
            return Ok(());
        };
        for event in events {
            self.boot.event(&event, Instant::now());
            match event {
                VmEvent::Failed { message } => return Err(SessionError::Vm(message)),
                VmEvent::Started { process_start_ns, first_run_ns, .. } => {
                    self.setup.trace.end_at("spawn", process_start_ns);
                    self.setup.trace.end_at("vmm", first_run_ns);
                    self.setup.until_started = None;
                    self.dial()?;
                }
                VmEvent::DriverReady { .. } | VmEvent::Exited(_) => {}
            }
        }
        Ok(())
    }

    /// The agent connects once, before any process of the container runs; nobody else is let in.
    fn on_connection(&mut self) -> Result<(), SessionError> {
        let Agent::Connects(listener) = &self.setup.agent else { return Ok(()) };
        let host = |source| SessionError::Host { action: "accept the agent's connection", source };
        let (stream, _) = listener.accept().map_err(host)?;
        self.link = Some(Link::new(stream).map_err(host)?);
        self.state = State::Greeting;
        self.boot.progress(Instant::now());
        Ok(())
    }

    /// Calls an agent that listens. It gets the plan at once: it is the agent of this lighter, and to wait for its
    /// greeting would cost the guest a turn.
    fn dial(&mut self) -> Result<(), SessionError> {
        let Agent::Listens(vsock) = &self.setup.agent else { return Ok(()) };
        let link = Link::dial(vsock, AGENT_PORT).map_err(|source| SessionError::Host {
            action: "connect to the machine's vsock device",
            source,
        })?;
        self.link = Some(link);
        self.state = State::Greeting;
        self.send_plan()
    }

    fn on_link(&mut self) -> Result<Option<Outcome>, SessionError> {
        let Some(link) = &mut self.link else { return Ok(None) };
        let received = link.flush().and_then(|()| link.receive());
        match received.map_err(|source| self.broken(source))? {
            Received::Messages(messages) => {
                for message in messages {
                    if let Some(outcome) = self.on_message(message)? {
                        return Ok(Some(outcome));
                    }
                }
            }
            Received::End => {
                self.link_ended = true;
                self.kill_at.get_or_insert(Instant::now() + END_TIMEOUT);
            }
        }
        Ok(None)
    }

    fn on_stdin(&mut self) -> Result<(), SessionError> {
        match self.stdin.as_mut().and_then(Stdin::read) {
            Some(message) => self.send(&message),
            None => Ok(()),
        }
    }

    /// Asks the process to end because nobody reads its output any more.
    fn stop(&mut self) -> Result<(), SessionError> {
        self.kill_at.get_or_insert(Instant::now() + END_TIMEOUT);
        self.unread = true;
        self.send(&HostMessage::Signal(self.setup.stop_signal))
    }

    /// Sends what may be dropped where the guest does not read.
    fn send(&mut self, message: &HostMessage) -> Result<(), SessionError> {
        let Some(link) = self.link.as_mut().filter(|_| !self.link_ended) else { return Ok(()) };
        link.send_if_room(message).map_err(|source| self.broken(source))
    }

    /// The process does not run yet, and a deadline says for how long that may be so.
    pub(super) fn is_coming_up(&self) -> bool {
        matches!(self.state, State::Booting | State::Greeting | State::Starting)
    }

    pub(super) fn broken(&self, source: LinkError) -> SessionError {
        SessionError::Link { source, console: console_tail(&self.setup.console) }
    }

    fn check_deadlines(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        if self.is_coming_up() && self.vm_end.is_none() && now >= self.boot.deadline() {
            return Err(SessionError::Boot(self.boot.diagnosis(true, &self.setup.console)));
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            // Its end is seen in its event pipe.
            self.vm.kill();
            self.kill_at = None;
        }
        Ok(())
    }
}
