//! Pulling and importing, against a registry made of a few threads that misbehaves on demand. Loopback only.

mod archives;
mod auth;
mod fake;
mod faults;
mod fixture;
mod registry;
mod store;
