//! One session with the host: frames in, frames out, and the process that it runs.
//!
//! Nothing is buffered without bound: while [`OUT_HIGH_WATER`] bytes wait to be sent, the process's output
//! is left in its pipes, so a slow reader on the host slows the process down and loses nothing; the host
//! sends stdin only as far as its credit goes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::frame::{self, Decoder};
use agent_protocol::message::{AgentMessage, ExitStatus, FailureKind, HostMessage};
use agent_protocol::tool::ToolPlan;
use agent_protocol::{MAX_CHUNK, PROTOCOL_VERSION};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::Pid;

use crate::failure::Failure;
use crate::process::Process;
use crate::read_ahead::read_ahead;
use crate::{clock, tools};

mod ward;

pub use ward::Ward;

/// Bytes that may wait for the host before the process's output is left where it is.
const OUT_HIGH_WATER: usize = 256 << 10;

/// One connection.
pub struct Session {
    stream: OwnedFd,
    decoder: Decoder,
    /// Encoded frames that the socket did not take yet.
    out: Vec<u8>,
    process: Option<Process>,
    /// The host hung up, or broke the protocol.
    closed: bool,
}

/// Something for each descriptor that a session polls.
#[derive(Clone, Copy, Default)]
pub struct Interest<T> {
    stream: T,
    stdin: T,
    stdout: T,
    stderr: T,
}

impl Session {
    /// Greets the host on a new connection.
    pub fn new(stream: OwnedFd, began_ns: u64) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut session =
            Session { stream, decoder: Decoder::default(), out: Vec::new(), process: None, closed: false };
        session.send(&AgentMessage::Hello {
            protocol: PROTOCOL_VERSION,
            kernel_release: release,
            agent_start_ns: began_ns,
            now_ns: clock::boottime_ns(),
        });
        session.flush();
        session
    }

    /// What to poll for.
    pub fn interest(&self) -> Interest<Option<(BorrowedFd<'_>, PollFlags)>> {
        let mut stream = PollFlags::IN;
        stream.set(PollFlags::OUT, !self.out.is_empty());
        let process = self.process.as_ref();
        let reading = self.out.len() < OUT_HIGH_WATER;
        Interest {
            stream: (!self.closed).then(|| (self.stream.as_fd(), stream)),
            stdin: process.and_then(|p| p.stdin_to_write()).map(|fd| (fd, PollFlags::OUT)),
            stdout: process.filter(|_| reading).and_then(|p| p.stdout()).map(|fd| (fd, PollFlags::IN)),
            stderr: process.filter(|_| reading).and_then(|p| p.stderr()).map(|fd| (fd, PollFlags::IN)),
        }
    }

    /// Does what is ready.
    pub fn serve(&mut self, ready: Interest<PollFlags>, container: &mut impl Ward) {
        if !ready.stream.is_empty() {
            self.receive(container);
        }
        if let Some(process) = &mut self.process {
            let credit = if ready.stdin.is_empty() { 0 } else { process.write_stdin() };
            if credit > 0 {
                self.send(&AgentMessage::StdinCredit(credit));
            }
        }
        self.forward_output(ready);
        self.report_end(container);
        self.flush();
    }

    /// A child of the agent ended; does nothing unless it is this session's process.
    pub fn child_ended(&mut self, pid: Pid, status: ExitStatus) {
        if let Some(process) = self.process.as_mut().filter(|process| process.pid() == pid) {
            process.ended(status);
        }
    }

    /// The host hung up.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The connection and its process are gone.
    pub fn is_over(&self) -> bool {
        self.closed && self.process.is_none()
    }

    fn receive(&mut self, container: &mut impl Ward) {
        let mut buffer = [0u8; 16 << 10];
        match rustix::io::read(&self.stream, &mut buffer[..]) {
            Ok(0) => self.close(),
            Ok(count) => {
                self.decoder.push(buffer.get(..count).unwrap_or_default());
                self.execute_all(container);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(),
        }
    }

    fn execute_all(&mut self, container: &mut impl Ward) {
        loop {
            match self.decoder.next_message::<HostMessage>() {
                Ok(Some(message)) => self.execute(message, container),
                Ok(None) => return,
                Err(error) => {
                    self.fail(Failure::agent(error.to_string()));
                    self.flush();
                    return self.close();
                }
            }
        }
    }

    fn execute(&mut self, message: HostMessage, container: &mut impl Ward) {
        match message {
            HostMessage::Prepare { root, read_ahead: files } => match container.prepare(&root) {
                Ok(()) => {
                    read_ahead(&files);
                    // What is written now need not be written by every clone.
                    rustix::fs::sync();
                    self.send(&AgentMessage::Prepared);
                }
                Err(failure) => self.fail(failure),
            },
            HostMessage::Start(plan) => {
                let started = container.start(&plan);
                self.started(started);
                if self.process.is_none() {
                    container.main_ended();
                }
            }
            HostMessage::Exec(plan) => {
                let started = container.exec(&plan);
                self.started(started);
            }
            HostMessage::Adopt(plan) => {
                let adopted = container.adopt(&plan);
                self.started(adopted);
            }
            HostMessage::Usage => match container.usage() {
                Ok(usage) => self.send(&AgentMessage::Usage(usage)),
                Err(failure) => self.fail(failure),
            },
            HostMessage::Connect { slot, interface } => {
                let connected = container.connect(slot, &interface);
                self.rewired(connected);
            }
            HostMessage::Disconnect { mac } => {
                let disconnected = container.disconnect(mac);
                self.rewired(disconnected);
            }
            HostMessage::Hold => self.hold(container),
            HostMessage::Release => {
                if self.process.is_none() {
                    self.process = container.release();
                }
            }
            HostMessage::PowerOff => container.request_power_off(),
            HostMessage::Tool { plan, on_disk } => self.hand_over(plan, on_disk, container),
            // A tool that has ended, or did not start, needs no answer.
            HostMessage::Offer | HostMessage::Done => {}
            HostMessage::Stdin(bytes) => self.stdin(bytes),
            HostMessage::StdinEof => self.with_process(Process::end_stdin),
            HostMessage::Signal(signal) => self.with_process(|process| process.signal(signal)),
            HostMessage::Resize(size) => self.with_process(|process| process.resize(size)),
        }
    }

    fn rewired(&mut self, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.send(&AgentMessage::Rewired),
            Err(failure) => self.fail(failure),
        }
    }

    /// Gives the connection to a tool in a process of its own.
    fn hand_over(&mut self, plan: ToolPlan, on_disk: bool, container: &mut impl Ward) {
        let started = match self.process {
            None => container.place_for_tools().and_then(|place| {
                let decoder = std::mem::take(&mut self.decoder);
                tools::spawn(plan, place, on_disk, &self.stream, decoder, &self.out)
            }),
            Some(_) => Err(Failure::agent("a session runs one process")),
        };
        match started {
            // The tool has a copy of the descriptor, so this one goes without ending the connection.
            Ok(()) => {
                self.closed = true;
                self.out = Vec::new();
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn started(&mut self, started: Result<Process, Failure>) {
        match started {
            _ if self.process.is_some() => self.fail(Failure::agent("a session runs one process")),
            Ok(process) => {
                self.send(&AgentMessage::Started {
                    pid: process.pid().as_raw_nonzero().get().unsigned_abs(),
                });
                self.process = Some(process);
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Lets go of the main process. Everything that was read from it goes out before `Held`.
    fn hold(&mut self, container: &mut impl Ward) {
        match self.process.take_if(|process| container.is_main(process.pid())) {
            Some(process) => {
                container.hold(process);
                self.send(&AgentMessage::Held);
            }
            None => self.fail(Failure::agent("this session does not have the main process")),
        }
    }

    /// A message for a process that is not there any more is late, not wrong.
    fn with_process(&mut self, act: impl FnOnce(&mut Process)) {
        if let Some(process) = &mut self.process {
            act(process);
        }
    }

    fn stdin(&mut self, bytes: Vec<u8>) {
        if let Some(Err(failure)) = self.process.as_mut().map(|process| process.queue_stdin(bytes)) {
            self.fail(failure);
            self.flush();
            self.close();
        }
    }

    fn forward_output(&mut self, ready: Interest<PollFlags>) {
        let Some(process) = &mut self.process else { return };
        // When the process is gone, what it left in its pipes is read whether or not poll saw it yet.
        let all = process.status().is_some() && self.out.len() < OUT_HIGH_WATER;
        let mut buffer = [0u8; MAX_CHUNK];
        let stdout = (all || !ready.stdout.is_empty()).then(|| process.read_stdout(&mut buffer)).flatten();
        if let Some(bytes) = stdout {
            let message = AgentMessage::Stdout(bytes.to_vec());
            self.send(&message);
        }
        let Some(process) = &mut self.process else { return };
        let stderr = (all || !ready.stderr.is_empty()).then(|| process.read_stderr(&mut buffer)).flatten();
        if let Some(bytes) = stderr {
            let message = AgentMessage::Stderr(bytes.to_vec());
            self.send(&message);
        }
    }

    /// Says `Exited` once the process is gone and all its output was read.
    fn report_end(&mut self, container: &mut impl Ward) {
        let Some(process) = &self.process else { return };
        let Some(status) = process.status().filter(|_| process.output_is_drained()) else { return };
        if container.is_main(process.pid()) {
            container.main_ended();
        }
        self.process = None;
        self.send(&AgentMessage::Exited(status));
    }

    fn fail(&mut self, failure: Failure) {
        let Failure { kind, message } = failure;
        self.send(&AgentMessage::Failed { kind, message });
    }

    fn send(&mut self, message: &AgentMessage) {
        if !self.closed && frame::encode(message, &mut self.out).is_err() {
            let message = AgentMessage::Failed {
                kind: FailureKind::Agent,
                message: "a message too long for a frame".into(),
            };
            let _ = frame::encode(&message, &mut self.out);
        }
    }

    fn flush(&mut self) {
        while !self.closed && !self.out.is_empty() {
            match rustix::io::write(&self.stream, &self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.close(),
            }
        }
    }

    /// The host hung up: the process goes on, but nobody hears it and its stdin ends.
    fn close(&mut self) {
        self.closed = true;
        self.out = Vec::new();
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
        if let Some(process) = &mut self.process {
            process.end_stdin();
        }
    }
}

impl<T: Copy> Interest<Option<T>> {
    /// What is there, in the order that [`Interest::answer`] expects.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        [self.stream, self.stdin, self.stdout, self.stderr].into_iter().flatten()
    }

    /// Puts one result for each entry of [`Interest::iter`] in its place.
    pub fn answer(&self, results: &mut impl Iterator<Item = PollFlags>) -> Interest<PollFlags> {
        let mut take = |asked: Option<T>| asked.and_then(|_| results.next()).unwrap_or(PollFlags::empty());
        Interest {
            stream: take(self.stream),
            stdin: take(self.stdin),
            stdout: take(self.stdout),
            stderr: take(self.stderr),
        }
    }
}

#[cfg(test)]
mod tests;
