//! The engine's API: containers, images, networks, volumes and snapshots over HTTP, as `docs/engine-api.md` describes.
//!
//! ```text
//! socket ─► server (limits, TLS, who calls) ─► router ─► operation (one entry of the table: what it takes and gives)
//!                                                             └─► engine's call on a thread ─► reply, stream or session
//! ```
//!
//! It holds no logic of its own and owns nothing: containers belong to their keepers, so the server may go and come at
//! any moment. One thread waits for all clients; a pool of threads does what the engine does synchronously. The
//! table of [`operations`] is both the router and the OpenAPI document.

mod body;
mod call;
pub mod client;
mod convert;
mod exclusive;
mod hub;
mod log;
mod metrics;
pub mod openapi;
mod operation;
pub mod operations;
mod problem;
mod race;
mod reply;
mod router;
mod server;
mod service;
pub mod session;
mod tenant;
mod transfer;
pub mod types;
mod watched;

pub use problem::ProblemBody;
pub use server::{Listen, Options, ServeError, Tls, serve};
