//! A process in a container and its caller: streams, terminal and signals over one connection, to the container's
//! keeper (`run`, `attach`) or to its agent (`exec`).

pub mod caller;
pub mod detach;
pub mod escalation;
pub mod link;
pub mod outcome;
mod output;
pub mod peer;
pub mod question;
pub mod signals;
mod stdin;
pub mod terminal;

use std::io;

pub use caller::{Caller, Leave, Manner, Streams};
use link::LinkError;
pub use outcome::Outcome;

/// Bytes of an agent's message that are shown.
const MAX_MESSAGE: usize = 4 << 10;

/// An agent's message as it may be shown: the guest is hostile.
pub(crate) fn shown(message: &str) -> String {
    let bytes = message.as_bytes();
    crate::text::printable(bytes.get(..MAX_MESSAGE).unwrap_or(bytes))
}

/// Why a run gave no outcome: exit code 125.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The VMM could not build or run the machine.
    #[error("{0}")]
    Vm(String),
    /// The guest did not get as far as its agent.
    #[error("{0}")]
    Boot(String),
    /// The machine was lost while the process ran.
    #[error("the container is lost: {0}")]
    Lost(String),
    /// The agent broke the protocol.
    #[error("{source}{console}")]
    Link {
        /// How.
        source: LinkError,
        /// The end of the guest's console.
        console: String,
    },
    /// The agent is of another version, or says what it must not say now.
    #[error("the agent in the guest {0}")]
    Protocol(String),
    /// The host.
    #[error("cannot {action}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
