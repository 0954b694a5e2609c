//! The file server of one machine: what a guest sees of its host's directories, over FUSE messages on a socket.
//!
//! ```text
//! guest ── virtio-fs ──► VMM ── socket ──► worker threads ── passthrough (fuse-backend-rs) ──► /0 /1 /2 …
//!                                             └── nothing else is there: namespaces of its own, few capabilities
//! ```
//!
//! It works for the guest and may be taken over by it, so [`enter`] gives it nothing but the shares: a root of its own
//! with each one mounted in it, read-only ones read-only. A symbolic link in a share is text to it; the guest's kernel
//! follows it in the guest.

mod cage;
mod serving;
mod tree;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use cage::{CageError, enter};
pub use serving::{Files, serve};

/// What the guest calls the file system.
pub const TAG: &str = "lighter";

/// What a server serves.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// An empty directory to make the tree at; nobody else sees that tree.
    pub place: PathBuf,
    /// What is in it. The guest finds number n as `/n`.
    pub shares: Vec<Share>,
}

/// One directory or file of the host.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Where it is on the host, absolute, links resolved.
    pub source: PathBuf,
    /// Nobody can write through it.
    pub read_only: bool,
}
