//! Virtio devices behind their registers, driven by a driver that keeps to no rule.
//!
//! An input is a program for the driver: each step is a byte that says what to do, then what it needs. Guest memory
//! has 8 MiB; the rings of queue N are where `FakeDriver` puts them, at (N + 1) × 64 KiB, until a step moves them.

mod driver;
mod kinds;

pub use self::kinds::{balloon, block, fs, mem, net, pmem, rng, vsock};
