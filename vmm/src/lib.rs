//! The virtual machine monitor: one process, one VM.
//!
//! The only crate that opens `/dev/kvm`.

pub mod api;
pub mod clock;
mod cmdline;
#[cfg(feature = "compromised")]
pub mod compromised;
pub mod config;
pub mod control;
mod dirty;
pub mod emulation;
mod exit;
pub mod host;
mod irq;
mod kvm;
pub mod memory;
pub mod pmem;
mod polling;
pub mod process;
mod report;
pub mod seccomp;
pub mod snapshot;
pub mod stop;
pub mod template;
pub mod text;
mod uffd;
mod vcpu;
pub mod vm;
mod worker;
