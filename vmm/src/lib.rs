//! The virtual machine monitor: one process, one VM.
//!
//! The only crate that opens `/dev/kvm`.

pub mod config;
