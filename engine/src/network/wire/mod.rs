//! What lighter does itself on the wire between a machine and its network in user mode.
//!
//! ```text
//! guest eth0 ── VMM ── socket pair ── relay ── socket pair ── passt ── the host's sockets
//!                                      ├── filter: --egress-allow; passt filters nothing
//!                                      └── datagrams: published UDP ports ── callers
//! ```
//!
//! It is in the container's keeper and not in the VMM: what breaks out of the guest into its VMM is still behind it.
//! There is a relay only where one of the two is wanted. Published TCP ports do not come this way.

mod datagrams;
mod filter;
mod packet;
mod refusal;
mod relay;

pub use datagrams::{Datagrams, Station};
pub use filter::{Filter, Verdict};
pub use refusal::refusal;
pub use relay::Relay;
