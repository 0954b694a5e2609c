//! Virtio 1.2 devices over the MMIO transport.

pub mod block;
pub mod device;
#[cfg(test)]
pub(crate) mod fake_queue;
pub mod guest_buffers;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod vsock;
