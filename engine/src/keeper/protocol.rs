//! What a keeper and its clients say to each other over `keeper.sock`: frames as between host and agent, so both
//! sides must come from the same lighter.
//!
//! A client says what it wants in any order; a keeper answers `Done` or `Refused` to `Pause`, `Unpause`,
//! `Hold` and `Release`, `Wired` or `Refused` to `Connect` and `Disconnect`, and `Ended` to whoever is there when the container's process ends.

use agent_protocol::message::{HostMessage, InterfacePlan, TerminalSize};
use serde::{Deserialize, Serialize};

use crate::network::spec::Endpoint;
use crate::session::Outcome;
use crate::trace::Used;

/// A client's wish.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Request {
    /// Hand on what the process writes from now on.
    Attach {
        /// And take what this client sends as stdin.
        stdin: bool,
        /// The client's terminal, if the process has one too.
        size: Option<TerminalSize>,
    },
    /// Stdin, its end, a signal or a new size for the process. Nothing else is taken.
    Process(HostMessage),
    /// Ask the process to end, and end the machine if it does not.
    Stop {
        /// Instead of the container's stop signal.
        signal: Option<i32>,
        /// Seconds to wait, instead of the container's.
        timeout: Option<u64>,
    },
    /// End the machine now.
    Kill,
    /// Stop the machine's processors.
    Pause,
    /// Let them go on.
    Unpause,
    /// Let a snapshot be made: the process's output waits in the guest until this client says `Release` or hangs up.
    /// `Done` once nothing is on its way any more.
    Hold,
    /// Put the machine into one more network. Answered with `Wired`.
    Connect(Endpoint),
    /// Take it out of a network, after its guest has let go of the interface. Answered with `Wired`.
    Disconnect(String),
    /// The snapshot is made: a machine that stands still goes on. Answered with `Done`.
    Release,
}

/// A keeper's word.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Reply {
    /// The process runs. Also the first word to a client that comes later.
    Started,
    /// Bytes from stdout, in order.
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes from stderr, in order.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// So many more bytes of stdin may be sent.
    StdinCredit(u32),
    /// Something that the user should know.
    Notice(String),
    /// How the start went.
    Phases {
        /// Ends of its phases: name, CLOCK_MONOTONIC in ns.
        ends: Vec<(String, u64)>,
        /// Processor time of the keeper, in ns.
        cpu_ns: u64,
        /// What the container took, where it has ended.
        used: Option<Used>,
    },
    /// The wish was fulfilled.
    Done,
    /// The machine's networks are as wanted.
    Wired(Wired),
    /// It was not.
    Refused(String),
    /// The container's process ended, or never ran. The last word.
    Ended(Outcome),
}

/// What the guest has to do after a change of its machine's networks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Wired {
    /// Look at this virtio slot, where an interface has come.
    pub slot: Option<u8>,
    /// Bring this interface up: the new one, or one that leads out from now on.
    pub interface: Option<InterfacePlan>,
}
