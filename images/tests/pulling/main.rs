//! Pulling, pushing, loading, saving and making images, against a registry made of a few threads that misbehaves on demand. Loopback only.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod archives;
mod auth;
mod committing;
mod exchange;
mod fake;
mod faults;
mod fixture;
mod pushing;
mod registry;
mod signing;
mod store;
