//! Device models of the microVM.
//!
//! A device here is plain state with methods: it owns no thread, no event loop and no KVM handle.
//! The `vmm` crate routes bus accesses and host events to it and owns the handles.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used))]

pub mod bus;
pub mod fault_copy;
pub mod generation;
pub mod held;
pub mod i8042;
pub mod ioapic;
pub mod keyboard;
pub mod power;
pub mod rate;
pub mod serial;
pub mod virtio;

/// Guest memory as every device sees it.
///
/// The bitmap is there from the first day: what the VMM itself writes must show up in a differential
/// snapshot, and KVM's dirty log only knows what vCPUs wrote. `None` costs nothing.
pub type GuestRam = vm_memory::GuestMemoryMmap<Option<vm_memory::bitmap::AtomicBitmap>>;
