//! Who is at the other end of a caller's session: a container's keeper (`run`, `attach`), its agent (`exec`), or a server
//! that has one of them (`--host`).

use std::os::fd::{AsFd, BorrowedFd};

use agent_protocol::PROTOCOL_VERSION;
use agent_protocol::message::{AgentMessage, HostMessage};

use super::link::{Link, LinkError, Received};
use super::{Outcome, SessionError, shown};
use crate::keeper::protocol::{Reply, Request};
use crate::trace::Used;

/// What came from the other end.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// From now on the process runs.
    Started,
    /// Its stdout.
    Stdout(Vec<u8>),
    /// Its stderr.
    Stderr(Vec<u8>),
    /// So much more stdin is taken.
    StdinCredit(u32),
    /// For the user.
    Notice(String),
    /// Ends of the phases of the start, ns of processor time, and what the container took.
    Phases(Vec<(String, u64)>, u64, Option<Used>),
    /// The end.
    Ended(Outcome),
}

/// Somebody through whom a process is reached.
pub trait Proxy: AsFd + std::fmt::Debug + Send {
    /// As [`Peer::receive`].
    fn receive(&mut self) -> Result<Option<Vec<Said>>, SessionError>;
    /// As [`Peer::say`].
    fn say(&mut self, message: HostMessage) -> Result<(), SessionError>;
    /// As [`Peer::end`].
    fn end(&mut self, now: bool) -> Result<(), SessionError>;
    /// As [`Peer::is_waiting`].
    fn is_waiting(&self) -> bool;
}

/// The other end.
#[derive(Debug)]
pub enum Peer {
    /// The container's keeper.
    Keeper(Link<Request, Reply>),
    /// The container's agent.
    Agent(Link),
    /// A server.
    Proxy(Box<dyn Proxy>),
}

impl Peer {
    /// Reads once, without waiting; `None` once the other end is closed.
    pub fn receive(&mut self) -> Result<Option<Vec<Said>>, SessionError> {
        match self {
            Self::Keeper(link) => match link.flush().and_then(|()| link.receive()) {
                Ok(Received::Messages(replies)) => {
                    Ok(Some(replies.into_iter().filter_map(of_keeper).collect()))
                }
                Ok(Received::End) => Ok(None),
                Err(source) => Err(broken(source)),
            },
            Self::Agent(link) => match link.flush().and_then(|()| link.receive()) {
                Ok(Received::Messages(messages)) => messages
                    .into_iter()
                    .filter_map(|message| of_agent(message).transpose())
                    .collect::<Result<_, _>>()
                    .map(Some),
                Ok(Received::End) => Ok(None),
                Err(source) => Err(broken(source)),
            },
            Self::Proxy(proxy) => proxy.receive(),
        }
    }

    /// Sends something for the process.
    pub fn say(&mut self, message: HostMessage) -> Result<(), SessionError> {
        match self {
            Self::Keeper(link) => link.send(&Request::Process(message)),
            Self::Agent(link) => link.send(&message),
            Self::Proxy(proxy) => return proxy.say(message),
        }
        .map_err(broken)
    }

    /// Asks for the end of the process, insisting or not.
    pub fn end(&mut self, now: bool) -> Result<(), SessionError> {
        match self {
            Self::Keeper(link) if now => link.send(&Request::Kill),
            Self::Keeper(link) => link.send(&Request::Stop { signal: None, timeout: None }),
            Self::Agent(link) => {
                link.send(&HostMessage::Signal(if now { libc::SIGKILL } else { libc::SIGHUP }))
            }
            Self::Proxy(proxy) => return proxy.end(now),
        }
        .map_err(broken)
    }

    /// Whether something waits to be written.
    pub fn is_waiting(&self) -> bool {
        match self {
            Self::Keeper(link) => link.is_waiting(),
            Self::Agent(link) => link.is_waiting(),
            Self::Proxy(proxy) => proxy.is_waiting(),
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Keeper(link) => link.as_fd(),
            Self::Agent(link) => link.as_fd(),
            Self::Proxy(proxy) => proxy.as_fd(),
        }
    }
}

fn of_keeper(reply: Reply) -> Option<Said> {
    Some(match reply {
        Reply::Started => Said::Started,
        Reply::Stdout(bytes) => Said::Stdout(bytes),
        Reply::Stderr(bytes) => Said::Stderr(bytes),
        Reply::StdinCredit(bytes) => Said::StdinCredit(bytes),
        Reply::Notice(text) | Reply::Refused(text) => Said::Notice(text),
        Reply::Phases { ends, cpu_ns, used } => Said::Phases(ends, cpu_ns, used),
        Reply::Ended(outcome) => Said::Ended(outcome),
        Reply::Done | Reply::Wired(_) => return None,
    })
}

fn of_agent(message: AgentMessage) -> Result<Option<Said>, SessionError> {
    Ok(Some(match message {
        AgentMessage::Hello { protocol, .. } if protocol == PROTOCOL_VERSION => return Ok(None),
        AgentMessage::Hello { protocol, .. } => {
            return Err(SessionError::Protocol(format!(
                "speaks protocol version {protocol}, this lighter {PROTOCOL_VERSION}: start the container again"
            )));
        }
        AgentMessage::Prepared
        | AgentMessage::Held
        | AgentMessage::Usage(_)
        | AgentMessage::Rewired
        | AgentMessage::Pieces(_)
        | AgentMessage::Declined => {
            return Err(SessionError::Protocol("said what nobody asked".to_owned()));
        }
        AgentMessage::Started { .. } => Said::Started,
        AgentMessage::Stdout(bytes) => Said::Stdout(bytes),
        AgentMessage::Stderr(bytes) => Said::Stderr(bytes),
        AgentMessage::StdinCredit(bytes) => Said::StdinCredit(bytes),
        AgentMessage::Failed { kind, message } => {
            Said::Ended(Outcome::NotStarted { kind, message: shown(&message) })
        }
        AgentMessage::Exited(status) => Said::Ended(Outcome::Exited(status)),
    }))
}

fn broken(source: LinkError) -> SessionError {
    SessionError::Link { source, console: String::new() }
}
