//! One question to the agent of a running container, over a connection of its own.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_protocol::AGENT_PORT;
use agent_protocol::message::{AgentMessage, HostMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::link::{Link, LinkError, Received};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// The machine's vsock device.
    #[error("cannot call the agent in the guest")]
    Call(#[source] io::Error),
    /// The connection broke.
    #[error("lost the agent in the guest")]
    Link(#[from] LinkError),
    /// It could not do it; a guest's word.
    #[error("the agent in the guest says: {0}")]
    Failed(String),
    /// It said something else, or hung up.
    #[error("the agent in the guest gave no answer")]
    Nothing,
    /// It is slow, or stands still.
    #[error("the agent in the guest did not answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// Says `message` to the agent behind the vsock device `vsock` and waits for what `answer` takes.
pub fn ask<T>(
    vsock: &Path,
    message: &HostMessage,
    timeout: Duration,
    mut answer: impl FnMut(AgentMessage) -> Option<T>,
) -> Result<T, QuestionError> {
    let mut link: Link = Link::dial(vsock, AGENT_PORT).map_err(QuestionError::Call)?;
    link.send(message)?;
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(QuestionError::Late(timeout));
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, link.is_waiting());
        let _ = poll(&mut [PollFd::new(&link, flags)], Timespec::try_from(left).ok().as_ref());
        link.flush()?;
        let Received::Messages(messages) = link.receive()? else { return Err(QuestionError::Nothing) };
        for message in messages {
            return match message {
                AgentMessage::Hello { .. } => continue,
                AgentMessage::Failed { message, .. } => {
                    Err(QuestionError::Failed(crate::text::printable(message.as_bytes())))
                }
                other => answer(other).ok_or(QuestionError::Nothing),
            };
        }
    }
}
