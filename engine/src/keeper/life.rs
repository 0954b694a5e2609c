//! One life of a container: from a started VM to the end of the container's process.
//!
//! ```text
//! Booting ── agent connects ──► Greeting ── Hello: plan sent ──► Starting ── Started ──► Running ── Exited ──► Leaving
//!    │                             │                               │ Failed                │                     │
//!    └── deadline, VM gone ────────┴── deadline, VM gone ──────────┴──────► error ◄── VM gone ┘     VM gone: end
//! ```
//!
//! One thread owns it all and waits in one poll. Nothing it does waits for anybody: a client who does not read slows
//! the guest's process down, a guest that does not read slows the clients' stdin down, and signals always get through.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_protocol::message::{ContainerPlan, ExitStatus, HostMessage, TerminalSize};
use agent_protocol::{AGENT_PORT, STDIN_WINDOW};
use vmm::config::{VmConfig, VmEvent};
use vmm::control;

use super::boot::{Boot, console_tail, describe};
use super::health::Checker;
use super::hub::Hub;
use super::protocol::{Reply, Request};
use super::waiting::Source;
use super::wiring::Wiring;
use crate::container::state::Health;
use crate::process::VmProcess;
use crate::process::events::Read;
use crate::session::link::{Link, LinkError, Received};
use crate::session::signals::Signals;
use crate::session::{Outcome, SessionError};
use crate::trace::{Trace, Used};

/// What a machine may take to end after its process did, and a process to end after it was killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// What the VMM may take to stop or start its processors.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

/// How a session with the agent comes about.
#[derive(Debug)]
pub enum Agent {
    /// The guest boots and its agent connects here.
    Connects(UnixListener),
    /// The guest goes on from a template and its agent listens behind this socket of the vsock device.
    Listens(PathBuf),
}

/// Something that others should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The process runs.
    Started,
    /// The processors are stopped.
    Paused,
    /// They go on.
    Unpaused,
    /// Somebody wants the end.
    Stopping,
    /// The rented time is nearly over.
    TtlSoon,
    /// The rented time is over.
    TtlOver,
    /// What the tests say has changed.
    Health(Health),
}

/// What a life needs beside its machine.
pub struct Setup<'a> {
    /// The machine's configuration.
    pub config: &'a VmConfig,
    /// Where the agent is found.
    pub agent: Agent,
    /// Makes the plan at the moment when it is sent, for a terminal of this size if it has one.
    pub plan: &'a dyn Fn(Option<TerminalSize>) -> ContainerPlan,
    /// Asks the process to end.
    pub stop_signal: i32,
    /// How long it may take then.
    pub stop_timeout: Duration,
    /// The disk is used again: the guest shall leave it in order.
    pub orderly: bool,
    /// The guest's console, for error messages.
    pub console: PathBuf,
    /// The keeper's own signals, already blocked.
    pub signals: &'a Signals,
    /// The clients.
    pub hub: &'a mut Hub,
    /// The machine is a copy of a running container's: its process is adopted, not started.
    pub adopts: bool,
    /// Where phases are noted.
    pub trace: &'a mut Trace,
    /// Told of changes.
    pub changed: &'a mut dyn FnMut(Change),
    /// Warning and end of the rented time.
    pub ttl: Option<(Instant, Instant)>,
    /// Finds out how well the container is.
    pub health: Option<Checker>,
    /// The machine's networks, where they may change while it runs.
    pub wiring: Option<Wiring<'a>>,
    /// What the container has taken, told of its machine's process.
    pub used: &'a dyn Fn(u32) -> Option<Used>,
}

/// How far a life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Booting,
    Greeting,
    Starting,
    Running,
    Leaving(ExitStatus),
}

/// A life in progress. The machine is killed when it is dropped.
pub struct Life<'a> {
    pub(super) setup: Setup<'a>,
    pub(super) vm: VmProcess,
    /// How the machine's process ended.
    pub(super) vm_end: Option<String>,
    pub(super) boot: Boot,
    pub(super) state: State,
    pub(super) link: Option<Link>,
    pub(super) link_ended: bool,
    /// Bytes of stdin that the agent takes.
    pub(super) stdin_credit: usize,
    pub(super) first_byte: bool,
    paused: bool,
    /// The agent lets the process be, see [`super::holding`].
    pub(super) held: bool,
    /// The process is killed at this time.
    pub(super) term_until: Option<Instant>,
    /// The machine is killed at this time.
    pub(super) kill_at: Option<Instant>,
    /// The process did not end though it was killed.
    killed: bool,
}

impl<'a> Life<'a> {
    /// A life in the machine `vm`, which was just started.
    pub fn new(setup: Setup<'a>, vm: VmProcess) -> Self {
        Self {
            boot: Boot::new(setup.config, Instant::now()),
            vm,
            vm_end: None,
            state: State::Booting,
            link: None,
            link_ended: false,
            stdin_credit: STDIN_WINDOW,
            first_byte: false,
            paused: false,
            held: false,
            term_until: None,
            kill_at: None,
            killed: false,
            setup,
        }
    }

    /// Runs to the end of the container's process.
    pub fn run(mut self) -> Result<Outcome, SessionError> {
        loop {
            if let Some(outcome) = self.finished()? {
                return Ok(outcome);
            }
            self.check_holder();
            self.setup.hub.forget_gone();
            for source in self.wait()? {
                if let Some(outcome) = self.handle(source)? {
                    return Ok(outcome);
                }
            }
            self.forward_stdin()?;
            self.check_deadlines()?;
        }
    }

    /// The end, if it is reached.
    fn finished(&mut self) -> Result<Option<Outcome>, SessionError> {
        if let State::Leaving(status) = self.state
            && (!self.setup.orderly || self.vm_end.is_some())
        {
            return Ok(Some(Outcome::Exited(status)));
        }
        let silent = self.link.is_none() || self.link_ended;
        match &self.vm_end {
            // It did not end when asked to, so its machine was ended: nothing is lost that anybody wanted.
            Some(_) if silent && self.killed => Ok(Some(Outcome::Interrupted { signal: libc::SIGKILL })),
            Some(end) if silent => Err(self.lost(end)),
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
            Source::Hub(someone) => {
                for (number, request) in self.setup.hub.serve(someone) {
                    if let Some(outcome) = self.on_request(number, request)? {
                        return Ok(Some(outcome));
                    }
                }
            }
            Source::Health => {
                if let Some(checker) = &mut self.setup.health {
                    checker.on_ready();
                }
            }
        }
        Ok(None)
    }

    /// Whoever ends the keeper means the container.
    fn on_signals(&mut self) -> Result<Option<Outcome>, SessionError> {
        while let Some(signal) = self.setup.signals.next() {
            if matches!(signal, libc::SIGTERM | libc::SIGINT) {
                (self.setup.changed)(Change::Stopping);
                if let Some(outcome) = self.stop(self.setup.stop_signal, self.setup.stop_timeout)? {
                    return Ok(Some(outcome));
                }
            }
        }
        Ok(None)
    }

    /// What a client wants.
    fn on_request(&mut self, number: usize, request: Request) -> Result<Option<Outcome>, SessionError> {
        match request {
            Request::Process(HostMessage::Signal(signal)) => return self.signal(signal),
            Request::Process(message @ HostMessage::Resize(_)) => self.send(&message)?,
            Request::Process(_) | Request::Attach { .. } => {}
            Request::Stop { signal, timeout } => {
                (self.setup.changed)(Change::Stopping);
                let timeout = timeout.map_or(self.setup.stop_timeout, Duration::from_secs);
                return self.stop(signal.unwrap_or(self.setup.stop_signal), timeout);
            }
            Request::Kill => {
                (self.setup.changed)(Change::Stopping);
                return Ok(Some(Outcome::Interrupted { signal: libc::SIGKILL }));
            }
            Request::Hold => self.hold(number)?,
            Request::Connect(endpoint) => self.connect(number, &endpoint),
            Request::Disconnect(network) => self.disconnect(number, &network),
            Request::Release => {
                self.release();
                self.setup.hub.tell(number, &Reply::Done);
            }
            Request::Pause | Request::Unpause => {
                let reply = match self.set_paused(request == Request::Pause) {
                    Ok(()) => Reply::Done,
                    Err(why) => Reply::Refused(why),
                };
                self.setup.hub.tell(number, &reply);
            }
        }
        Ok(None)
    }

    fn signal(&mut self, signal: i32) -> Result<Option<Outcome>, SessionError> {
        match self.state {
            State::Booting | State::Greeting => Ok(Some(Outcome::Interrupted { signal })),
            State::Leaving(status) => Ok(Some(Outcome::Exited(status))),
            State::Starting | State::Running => {
                // What is held hears nothing.
                self.release();
                self.send(&HostMessage::Signal(signal))?;
                // What is killed needs no turn of its own to notice, unless nothing turns.
                if signal == libc::SIGKILL && self.paused {
                    let _ = self.set_paused(false);
                }
                Ok(None)
            }
        }
    }

    /// Asks the process to end, and sees to it that it does.
    fn stop(&mut self, signal: i32, timeout: Duration) -> Result<Option<Outcome>, SessionError> {
        let ended = self.signal(signal)?;
        if self.paused {
            let _ = self.set_paused(false);
        }
        let until = Instant::now().checked_add(timeout);
        self.term_until = until.map(|until| self.term_until.map_or(until, |before| before.min(until)));
        Ok(ended)
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), String> {
        if self.state != State::Running {
            return Err("the container's process does not run yet, or not any more".to_owned());
        }
        if self.held {
            return Err("a snapshot of it is being made".to_owned());
        }
        if self.paused == paused {
            return Err(format!("the container is {}paused", if paused { "already " } else { "not " }));
        }
        let socket = self.setup.config.control.as_deref().ok_or("its machine has no control socket")?;
        let request = if paused { control::Request::Pause } else { control::Request::Resume };
        ask_vmm(socket, &request)?;
        self.paused = paused;
        (self.setup.changed)(if paused { Change::Paused } else { Change::Unpaused });
        Ok(())
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

    /// Hands the clients' stdin on, as far as the agent takes it.
    fn forward_stdin(&mut self) -> Result<(), SessionError> {
        while self.takes_stdin() {
            let Some(message) = self.setup.hub.take_stdin(self.stdin_credit) else { break };
            if let HostMessage::Stdin(bytes) = &message {
                self.stdin_credit -= bytes.len();
            }
            self.send(&message)?;
        }
        Ok(())
    }

    /// The process takes stdin now.
    pub(super) fn takes_stdin(&self) -> bool {
        let has_room = self.link.as_ref().is_some_and(|link| !link.is_waiting());
        self.state == State::Running && !self.held && !self.link_ended && has_room && self.stdin_credit > 0
    }

    /// Sends what may be dropped where the guest does not read.
    pub(super) fn send(&mut self, message: &HostMessage) -> Result<(), SessionError> {
        let Some(link) = self.link.as_mut().filter(|_| !self.link_ended) else { return Ok(()) };
        link.send_if_room(message).map_err(|source| self.broken(source))
    }

    /// The process ended: the guest shall leave its disk in order, if anybody wants it again.
    pub(super) fn leave(&mut self, status: ExitStatus) -> Result<(), SessionError> {
        self.setup.trace.set_used((self.setup.used)(self.vm.id()));
        self.state = State::Leaving(status);
        self.setup.hub.set_running(false);
        (self.term_until, self.setup.ttl, self.setup.health) = (None, None, None);
        if self.setup.orderly {
            self.kill_at = Some(Instant::now() + END_TIMEOUT);
            self.send(&HostMessage::PowerOff)?;
        }
        Ok(())
    }

    /// The process does not run yet, and a deadline says for how long that may be so.
    pub(super) fn is_coming_up(&self) -> bool {
        matches!(self.state, State::Booting | State::Greeting | State::Starting)
    }

    /// It was paused by a user.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn broken(&self, source: LinkError) -> SessionError {
        SessionError::Link { source, console: console_tail(&self.setup.console) }
    }

    fn check_deadlines(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        if self.is_coming_up() && self.vm_end.is_none() && now >= self.boot.deadline() {
            return Err(SessionError::Boot(self.boot.diagnosis(true, &self.setup.console)));
        }
        if self.term_until.is_some_and(|until| now >= until) {
            self.term_until = None;
            self.killed = true;
            self.kill_at.get_or_insert(now + END_TIMEOUT);
            self.send(&HostMessage::Signal(libc::SIGKILL))?;
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            // Its end is seen in its event pipe.
            self.vm.kill();
            self.kill_at = None;
        }
        if let Some((warning, end)) = self.setup.ttl {
            if now >= end {
                self.setup.ttl = None;
                (self.setup.changed)(Change::TtlOver);
                self.stop(self.setup.stop_signal, self.setup.stop_timeout)?;
            } else if now >= warning {
                self.setup.ttl = Some((end, end));
                (self.setup.changed)(Change::TtlSoon);
            }
        }
        if let Some(health) = self.setup.health.as_mut().and_then(|checker| checker.tick(now)) {
            (self.setup.changed)(Change::Health(health));
        }
        Ok(())
    }
}

/// Asks the VMM behind `socket` for something.
pub(super) fn ask_vmm(socket: &Path, request: &control::Request) -> Result<control::Done, String> {
    connect_vmm(socket)?.ask(request).map_err(|error| vmm::text::with_causes(&error))
}

/// A connection to the VMM behind `socket`.
pub(super) fn connect_vmm(socket: &Path) -> Result<control::Client, String> {
    control::Client::connect(socket, CONTROL_TIMEOUT).map_err(|error| vmm::text::with_causes(&error))
}
