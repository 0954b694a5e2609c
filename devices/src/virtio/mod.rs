//! Virtio 1.2 devices over the MMIO transport.

pub mod device;
