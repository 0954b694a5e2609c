//! A keeper's clients: who hears the process, who speaks to it, and the log that hears everything.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use agent_protocol::message::{HostMessage, TerminalSize};
use agent_protocol::{MAX_CHUNK, STDIN_WINDOW};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::protocol::{Reply, Request};
use crate::container::state::now_ns;
use crate::log::Stream;
use crate::log::writer::Writer;
use crate::session::Outcome;
use crate::session::link::{Link, Received};

/// Bytes that wait for a client who does not read, before the guest is made to wait.
const MAX_PENDING: usize = 1 << 20;
/// Clients at once; more wait to be let in.
const MAX_CLIENTS: usize = 128;

/// One connection.
#[derive(Debug)]
struct Client {
    link: Link<Reply, Request>,
    output: bool,
    stdin: Option<Stdin>,
    gone: bool,
    /// It makes a snapshot.
    holds: bool,
}

/// Stdin of one client on its way to the process.
#[derive(Debug, Default)]
struct Stdin {
    queue: VecDeque<u8>,
    over: bool,
}

/// All clients of a container, and its log.
#[derive(Debug)]
pub struct Hub {
    listener: UnixListener,
    clients: Vec<Client>,
    log: Writer,
    log_broken: bool,
    running: bool,
    /// See [`crate::container::spec::Lifetime::stdin_once`].
    stdin_once: bool,
    size: Option<TerminalSize>,
}

/// Somebody of a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Someone {
    /// A new client.
    Listener,
    /// The client of this number.
    Client(usize),
}

impl Hub {
    /// Nobody is there but who comes over `first`.
    pub fn new(
        listener: UnixListener,
        first: Option<UnixStream>,
        log: Writer,
        stdin_once: bool,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut hub = Self {
            listener,
            clients: Vec::new(),
            log,
            log_broken: false,
            running: false,
            stdin_once,
            size: None,
        };
        if let Some(first) = first {
            hub.add(first)?;
        }
        Ok(hub)
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        self.clients.push(Client {
            link: Link::new(stream)?,
            output: false,
            stdin: None,
            gone: false,
            holds: false,
        });
        Ok(())
    }

    /// What to poll. The numbers hold until [`Hub::forget_gone`].
    pub fn fds(&self) -> Vec<(Someone, BorrowedFd<'_>, PollFlags)> {
        let listener = (self.clients.len() < MAX_CLIENTS).then_some((
            Someone::Listener,
            self.listener.as_fd(),
            PollFlags::IN,
        ));
        let clients = self.clients.iter().enumerate().filter(|(_, client)| !client.gone);
        let clients = clients.map(|(number, client)| {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, client.link.is_waiting());
            (Someone::Client(number), client.link.as_fd(), flags)
        });
        listener.into_iter().chain(clients).collect()
    }

    /// Somebody is ready: what they ask of the container.
    pub fn serve(&mut self, someone: Someone) -> Vec<(usize, Request)> {
        match someone {
            Someone::Listener => {
                // Whoever hung up before we came is nobody's loss.
                let _ = self.listener.accept().and_then(|(stream, _)| self.add(stream));
                Vec::new()
            }
            Someone::Client(number) => self.read(number),
        }
    }

    fn read(&mut self, number: usize) -> Vec<(usize, Request)> {
        let running = self.running;
        let Some(client) = self.clients.get_mut(number).filter(|client| !client.gone) else {
            return Vec::new();
        };
        let messages = match client.link.flush().and_then(|()| client.link.receive()) {
            Ok(Received::Messages(messages)) => messages,
            Ok(Received::End) | Err(_) => {
                client.hang_up(self.stdin_once);
                return Vec::new();
            }
        };
        let mut wishes = Vec::new();
        for message in messages {
            match message {
                Request::Attach { stdin, size } => {
                    client.output = true;
                    client.stdin = stdin.then(Stdin::default);
                    self.size = size.or(self.size);
                    if running {
                        client.say(&Reply::Started);
                        wishes.extend(size.map(|size| (number, Request::Process(HostMessage::Resize(size)))));
                    }
                }
                Request::Process(HostMessage::Stdin(bytes)) => client.take(bytes),
                Request::Process(HostMessage::StdinEof) => client.end_stdin(),
                wish => wishes.push((number, wish)),
            }
        }
        wishes
    }

    /// Forgets who hung up, once what they said last is handed on.
    pub fn forget_gone(&mut self) {
        self.clients.retain(|client| !client.gone || client.stdin.is_some());
    }

    /// The size of the terminal that the process shall begin with.
    pub fn size(&self) -> Option<TerminalSize> {
        self.size
    }

    /// Some output came: gives why the log, from now on, has a gap.
    pub fn output(&mut self, stream: Stream, bytes: Vec<u8>) -> Option<io::Error> {
        let logged = self.log.append(stream, now_ns(), &bytes);
        let reply = match stream {
            Stream::Stdout => Reply::Stdout(bytes),
            Stream::Stderr => Reply::Stderr(bytes),
        };
        self.clients.iter_mut().filter(|client| client.output).for_each(|client| client.say(&reply));
        let was_broken = std::mem::replace(&mut self.log_broken, logged.is_err());
        logged.err().filter(|_| !was_broken)
    }

    /// Nobody is so far behind that the process has to wait.
    pub fn has_room(&self) -> bool {
        self.clients.iter().all(|client| client.gone || client.link.pending() < MAX_PENDING)
    }

    /// The next at most `limit` bytes of stdin for the process, or its end.
    pub fn take_stdin(&mut self, limit: usize) -> Option<HostMessage> {
        for client in &mut self.clients {
            let Some(stdin) = &mut client.stdin else { continue };
            if client.gone && stdin.queue.is_empty() && !stdin.over {
                client.stdin = None;
                continue;
            }
            let count = stdin.queue.len().min(limit).min(MAX_CHUNK);
            if count > 0 {
                let bytes: Vec<u8> = stdin.queue.drain(..count).collect();
                client.say(&Reply::StdinCredit(u32::try_from(count).unwrap_or(u32::MAX)));
                return Some(HostMessage::Stdin(bytes));
            }
            if stdin.queue.is_empty() && stdin.over {
                client.stdin = None;
                return Some(HostMessage::StdinEof);
            }
        }
        None
    }

    /// The process runs from now on, or does not any more.
    pub fn set_running(&mut self, running: bool) {
        self.running = running;
        if running {
            self.tell_all(&Reply::Started);
        }
    }

    /// Says something to one client.
    pub fn tell(&mut self, number: usize, reply: &Reply) {
        if let Some(client) = self.clients.get_mut(number) {
            client.say(reply);
        }
    }

    /// This client makes a snapshot from now on, if it is there.
    pub fn set_holder(&mut self, number: usize) {
        if let Some(client) = self.clients.get_mut(number) {
            client.holds = true;
        }
    }

    /// Whoever makes a snapshot is still there.
    pub fn has_holder(&self) -> bool {
        self.clients.iter().any(|client| client.holds && !client.gone)
    }

    /// Says something to who makes a snapshot.
    pub fn tell_holder(&mut self, reply: &Reply) {
        self.clients.iter_mut().filter(|client| client.holds).for_each(|client| client.say(reply));
    }

    /// Nobody makes a snapshot any more.
    pub fn end_holding(&mut self) {
        self.clients.iter_mut().for_each(|client| client.holds = false);
    }

    /// Says something to all.
    pub fn tell_all(&mut self, reply: &Reply) {
        self.clients.iter_mut().for_each(|client| client.say(reply));
    }

    /// The process ended; whoever is there hears of it and is not waited for.
    pub fn dismiss(&mut self, outcome: &Outcome) -> Farewell {
        self.running = false;
        self.tell_all(&Reply::Ended(outcome.clone()));
        Farewell { clients: std::mem::take(&mut self.clients) }
    }
}

/// Clients to whom nothing more is said than what waits for them already.
#[derive(Debug, Default)]
pub struct Farewell {
    clients: Vec<Client>,
}

impl Farewell {
    /// Adds those of another end.
    pub fn join(&mut self, other: Self) {
        self.clients.extend(other.clients);
    }

    /// Waits until each has read everything, or hung up.
    pub fn wait(mut self) {
        loop {
            self.clients
                .retain_mut(|client| !client.gone && client.link.flush().is_ok() && client.link.is_waiting());
            if self.clients.is_empty() {
                return;
            }
            let mut fds: Vec<_> =
                self.clients.iter().map(|client| PollFd::new(&client.link, PollFlags::OUT)).collect();
            if !matches!(poll(&mut fds, None), Ok(_) | Err(Errno::INTR)) {
                return;
            }
        }
    }
}

impl Client {
    fn say(&mut self, reply: &Reply) {
        if !self.gone && self.link.send(reply).is_err() {
            self.gone = true;
        }
    }

    /// Takes stdin. A client that overruns its window is no client of ours.
    fn take(&mut self, bytes: Vec<u8>) {
        let Some(stdin) = self.stdin.as_mut().filter(|stdin| !stdin.over) else { return };
        if stdin.queue.len() + bytes.len() > STDIN_WINDOW {
            return self.hang_up(false);
        }
        stdin.queue.extend(bytes);
    }

    fn end_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.over = true;
        }
    }

    fn hang_up(&mut self, ends_stdin: bool) {
        self.gone = true;
        match &mut self.stdin {
            Some(stdin) if ends_stdin => stdin.over = true,
            Some(stdin) if !stdin.queue.is_empty() => {}
            _ => self.stdin = None,
        }
    }
}
