//! What the guest's kernel says of its memory, asked of its agent.

use std::time::{Duration, Instant};

use agent_protocol::AGENT_PORT;
use agent_protocol::message::{AgentMessage, HostMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::container::record::Record;
use crate::container::state::Status;
use crate::session::link::{Link, Received};

/// How long an agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// In bytes; a guest's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuestUsage {
    /// Memory that the guest has.
    pub total: u64,
    /// What is not available to new processes.
    pub used: u64,
    /// Files that the guest remembers.
    pub cached: u64,
}

/// Asks the agent of a container that runs.
pub fn usage(record: &Record) -> Option<GuestUsage> {
    if record.state.status != Status::Running {
        return None;
    }
    let mut link: Link = Link::dial(&record.vsock(), AGENT_PORT).ok()?;
    link.send(&HostMessage::Usage).ok()?;
    let end = Instant::now() + TIMEOUT;
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, link.is_waiting());
        let _ = poll(&mut [PollFd::new(&link, flags)], Timespec::try_from(left).ok().as_ref());
        link.flush().ok()?;
        let Received::Messages(messages) = link.receive().ok()? else { return None };
        for message in messages {
            match message {
                AgentMessage::Hello { .. } => {}
                AgentMessage::Usage(usage) => {
                    let bytes = |kib: u64| kib.saturating_mul(1024);
                    return Some(GuestUsage {
                        total: bytes(usage.total_kib),
                        used: bytes(usage.total_kib.saturating_sub(usage.available_kib)),
                        cached: bytes(usage.cached_kib),
                    });
                }
                _ => return None,
            }
        }
    }
}
