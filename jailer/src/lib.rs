//! Confines the process that runs a virtual machine. Small, so that it can be read in one sitting.
//!
//! ```text
//! keeper ── child::spawn: PID namespace (and user namespace, for a user) ──► VMM opens what its VM was given
//!    ──► cage::enter: namespaces ─► empty root ─► own UID ─► limits ─► no capabilities ─► no new ones ─► Landlock
//!    ──► filter::install in each thread: the system calls of its role
//! ```
//!
//! What was opened before stays open; nothing else of the host can be reached afterwards. A layer that the host does not
//! permit is reported, never left out silently.

pub mod cage;
pub mod child;
pub mod filter;
pub mod landlock;
pub mod privileges;
pub mod program;
pub mod root;

/// First of the user IDs that VMM processes get when root starts them: one for each process ID there can be. Above
/// those that systemd gives to containers.
pub const FIRST_UID: u32 = 0x7000_0000;
/// Exclusive end of the same, by the largest `kernel.pid_max` that Linux permits.
pub const END_UID: u32 = FIRST_UID + (4 << 20);
