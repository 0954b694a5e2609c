//! What the guest's kernel says of its memory, asked of its agent.

use std::time::Duration;

use agent_protocol::message::{AgentMessage, HostMessage};
use serde::Serialize;

use crate::container::record::Record;
use crate::container::state::Status;
use crate::session::question;

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
    let answer = question::ask(&record.vsock(), &HostMessage::Usage, TIMEOUT, |message| match message {
        AgentMessage::Usage(usage) => Some(usage),
        _ => None,
    });
    let usage = answer.ok()?;
    let bytes = |kib: u64| kib.saturating_mul(1024);
    Some(GuestUsage {
        total: bytes(usage.total_kib),
        used: bytes(usage.total_kib.saturating_sub(usage.available_kib)),
        cached: bytes(usage.cached_kib),
    })
}
