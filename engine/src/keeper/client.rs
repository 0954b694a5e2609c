//! Talking to a container's keeper.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::protocol::{Reply, Request, Wired};
use crate::container::record::Record;
use crate::session::link::{Link, LinkError, Received};
use crate::session::{Outcome, SessionError};

/// What a keeper may take to answer what it answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a keeper could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is none.
    #[error("container {0} is not running; `lighter start {0}` starts it")]
    NotRunning(String),
    /// It says no.
    #[error("container {name}: {why}")]
    Refused {
        /// The container.
        name: String,
        /// Why.
        why: String,
    },
    /// It does not answer.
    #[error("the keeper of container {0} does not answer")]
    Silent(String),
    /// The connection broke.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A connection to the keeper of `record`.
pub fn connect(record: &Record) -> Result<Link<Request, Reply>, AskError> {
    let not_running = |_| AskError::NotRunning(record.name.clone());
    let stream = UnixStream::connect(record.keeper()).map_err(not_running)?;
    Link::new(stream).map_err(not_running)
}

/// Asks for something that is done at once.
pub fn ask(record: &Record, request: &Request) -> Result<(), AskError> {
    ask_over(record, &mut connect(record)?, request)
}

/// The same over a connection that goes on.
pub fn ask_over(record: &Record, link: &mut Link<Request, Reply>, request: &Request) -> Result<(), AskError> {
    answer_to(record, link, request, |reply| matches!(reply, Reply::Done).then_some(()))
}

/// Asks for other networks.
pub fn rewire(record: &Record, request: &Request) -> Result<Wired, AskError> {
    answer_to(record, &mut connect(record)?, request, |reply| match reply {
        Reply::Wired(wired) => Some(wired),
        _ => None,
    })
}

fn answer_to<T>(
    record: &Record,
    link: &mut Link<Request, Reply>,
    request: &Request,
    mut answer: impl FnMut(Reply) -> Option<T>,
) -> Result<T, AskError> {
    link.send(request).map_err(broken)?;
    let deadline = Some(Instant::now() + ANSWER_TIMEOUT);
    wait(record, link, deadline, |reply| match reply {
        Reply::Refused(why) => Some(Err(AskError::Refused { name: record.name.clone(), why })),
        Reply::Ended(_) => Some(Err(AskError::NotRunning(record.name.clone()))),
        reply => answer(reply).map(Ok),
    })?
}

/// Sends what is not answered.
pub fn tell(record: &Record, request: &Request) -> Result<(), AskError> {
    let mut link = connect(record)?;
    link.send(request).map_err(broken)?;
    while link.is_waiting() {
        poll(&mut [PollFd::new(&link, PollFlags::OUT)], None)
            .map_err(|errno| broken(LinkError::Io(errno.into())))?;
        link.flush().map_err(broken)?;
    }
    Ok(())
}

/// Says `request`, if there is one, and waits for the end of the container.
pub fn wait_for_end(record: &Record, request: Option<&Request>) -> Result<Outcome, AskError> {
    let mut link = connect(record)?;
    if let Some(request) = request {
        link.send(request).map_err(broken)?;
    }
    wait(record, &mut link, None, |reply| match reply {
        Reply::Ended(outcome) => Some(outcome),
        _ => None,
    })
}

/// Reads until `found` finds something.
pub fn wait<T>(
    record: &Record,
    link: &mut Link<Request, Reply>,
    deadline: Option<Instant>,
    mut found: impl FnMut(Reply) -> Option<T>,
) -> Result<T, AskError> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(AskError::Silent(record.name.clone()));
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, link.is_waiting());
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(link, flags)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(broken(LinkError::Io(errno.into()))),
        }
        match link.flush().and_then(|()| link.receive()).map_err(broken)? {
            Received::Messages(replies) => {
                if let Some(found) = replies.into_iter().find_map(&mut found) {
                    return Ok(found);
                }
            }
            Received::End => return Err(AskError::NotRunning(record.name.clone())),
        }
    }
}

fn broken(source: LinkError) -> AskError {
    SessionError::Link { source, console: String::new() }.into()
}
