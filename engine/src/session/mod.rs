//! From a started VM to the end of the container's process: the agent's session, the caller's streams and signals.
//!
//! ```text
//! Booting ── agent connects ──► Greeting ── Hello: plan sent ──► Starting ── Started ──► Running ── Exited ──► Draining
//!    │                             │                               │ Failed                │                     │
//!    └── deadline, VM gone ────────┴── deadline, VM gone ──────────┴──────► error ◄── VM gone ┘      all written: end
//! ```
//!
//! One thread owns it all and waits in one poll. Nothing it does waits for anybody: a caller who does not read slows
//! the guest's process down, a guest that does not read slows the caller's stdin down, and signals always get through.

pub mod boot;
pub mod escalation;
pub mod link;
mod messages;
pub mod outcome;
mod output;
pub mod signals;
mod stdin;
mod supervisor;
pub mod terminal;
mod waiting;

#[cfg(test)]
mod tests;

use std::io;

use link::LinkError;
pub use outcome::Outcome;
pub use supervisor::{Agent, Session, Setup, Streams};

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
