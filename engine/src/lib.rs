//! Containers: their state on disk, their network, and the run of one from image to exit status.
//!
//! ```text
//! run:    resolve ─► pull ─► root filesystem ─► template ─► container ─► keeper ─► caller's session ─► exit status
//! keeper: disks ─► network ─► VMM process ─► agent's session ─► state, log, clients
//! ```
//!
//! No daemon: each running container has a keeper of its own, a process with one thread and one poll loop. Only the
//! bridge's set-up talks netlink through a small runtime of its own.

pub mod carried;
pub mod container;
pub mod dirs;
pub mod doctor;
pub mod error;
pub mod events;
pub mod exec;
pub mod files;
pub mod intake;
pub mod isolation;
pub mod keeper;
pub mod kernel;
pub mod lock;
pub mod log;
pub mod maintenance;
pub mod network;
pub mod plan;
pub mod process;
pub mod resources;
pub mod rewire;
pub mod run;
pub mod security;
pub mod service;
pub mod session;
pub mod snapshot;
pub mod stats;
pub mod template;
pub mod text;
pub mod trace;
pub mod verbs;
pub mod volumes;

pub use agent_protocol::message::{ExitStatus, FailureKind, GuestLimits, HostMessage, TerminalSize};
pub use agent_protocol::{MAX_CHUNK, PROTOCOL_VERSION, STDIN_WINDOW};
