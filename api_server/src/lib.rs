//! The microVM API: Firecracker's v1 REST on a Unix socket, as messages to the one who owns the VM.
//!
//! ```text
//! socket ─► Server ─► http::Request ─► route ─► Call ─► the VM's owner ─► http::Response ─► Server ─► socket
//! ```
//!
//! Nothing here knows of a VM: [`Call`] says what a client wants and in which phases it may want it. The paths,
//! fields, defaults, status codes and messages are those of Firecracker's API (its OpenAPI document is
//! `src/firecracker/swagger/firecracker.yaml` there), so that its clients work unchanged. `docs/api.md` has the list.

mod call;
mod fault;
pub mod http;
mod router;
mod server;
pub mod wire;

pub use self::call::{Call, DeviceKind, Phase};
pub use self::fault::Fault;
pub use self::router::{Routed, route};
pub use self::server::{Asked, ListenError, Server};

/// The release of Firecracker whose API this is.
pub const FIRECRACKER_VERSION: &str = "1.16.0";
