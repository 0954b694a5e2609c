//! Pulling and importing, against a registry made of a few threads that misbehaves on demand. Loopback only.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod archives;
mod auth;
mod fake;
mod faults;
mod fixture;
mod registry;
mod store;
