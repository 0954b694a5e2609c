//! Virtio 1.2 devices over the MMIO transport.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod device;
#[cfg(any(test, feature = "test-utils"))]
mod fake_queue;
pub mod fs;
pub mod guest_buffers;
pub mod mem;
pub mod net;
pub mod placeholder;
pub mod pmem;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
pub mod transport;
pub mod vsock;
