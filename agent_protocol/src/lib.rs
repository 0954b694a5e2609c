//! What the host and the agent in the guest say to each other over vsock.
//!
//! A *session* is one stream connection that carries frames both ways. Either side may open it: after
//! boot the agent connects to the host on [`HOST_PORT`]; later the host connects to the agent on
//! [`AGENT_PORT`]. The agent always speaks first, with [`AgentMessage::Hello`].
//!
//! The guest holds no policy: the host sends one batched plan and the agent carries it out.

pub mod frame;
pub mod message;
pub mod mount;
pub mod tool;

/// Version of everything in this crate; both sides refuse another one.
pub const PROTOCOL_VERSION: u8 = 8;
/// Guest port on which the agent listens.
pub const AGENT_PORT: u32 = 1024;
/// Host port to which the agent connects once, after boot.
pub const HOST_PORT: u32 = 1024;
/// Guest port on which the agent takes connections to the container's own ports, if the plan says so.
pub const FORWARD_PORT: u32 = 1025;
/// Host port for questions about names that came by TCP, each behind its length (RFC 1035, section 4.2.2).
pub const DNS_STREAM_PORT: u32 = 53;
/// Host port for questions about names that came by UDP, one a connection, in the same form.
pub const DNS_DATAGRAM_PORT: u32 = 1053;
/// Largest frame body in bytes; a longer one is a protocol violation (stops memory exhaustion).
pub const MAX_FRAME: usize = 1 << 20;
/// Most bytes of stdio that one message carries.
pub const MAX_CHUNK: usize = 64 << 10;
/// Bytes of stdin that the host may send ahead of the agent's [`message::AgentMessage::StdinCredit`].
pub const STDIN_WINDOW: usize = 256 << 10;
