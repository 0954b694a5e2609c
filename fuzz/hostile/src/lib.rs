//! What hostile input goes through: one function an attack surface, from bytes to acceptance or refusal.
//!
//! ```text
//! libFuzzer ──────────► fuzz/fuzz_targets/NAME.rs ─┐
//! cargo test: corpus, then changes of it (tests/) ─┴► TARGETS[NAME](bytes) must return, and soon
//! ```
//!
//! A target panics where something was found; it returns whatever the code under test says to the input.

#![allow(clippy::unwrap_used, reason = "a panic is how a target fails")]

mod bytes;
mod devices;
#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "dns")]
mod egress;
pub mod mutate;
mod parsers;
mod registers;
#[path = "../../../vmm/tests/support/hostile.rs"]
mod snapshot;
mod wire;

/// One attack surface.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Of its directory in `fuzz/corpus`.
    pub name: &'static str,
    /// Longest input that makes sense, in bytes.
    pub max_len: usize,
    /// Takes one input.
    pub run: fn(&[u8]),
}

/// Every attack surface.
pub const TARGETS: &[Target] = &[
    Target { name: "block", max_len: 4096, run: devices::block },
    Target { name: "net", max_len: 4096, run: devices::net },
    Target { name: "vsock", max_len: 4096, run: devices::vsock },
    Target { name: "rng", max_len: 4096, run: devices::rng },
    Target { name: "balloon", max_len: 4096, run: devices::balloon },
    Target { name: "mem", max_len: 4096, run: devices::mem },
    Target { name: "pmem", max_len: 4096, run: devices::pmem },
    Target { name: "fs", max_len: 4096, run: devices::fs },
    Target { name: "registers", max_len: 1024, run: registers::run },
    Target { name: "stream", max_len: 8192, run: wire::stream },
    Target { name: "detour", max_len: 8192, run: wire::detour },
    #[cfg(feature = "dns")]
    Target { name: "dns", max_len: 1024, run: dns::run },
    #[cfg(feature = "dns")]
    Target { name: "egress", max_len: 2048, run: egress::run },
    Target { name: "agent", max_len: 8192, run: parsers::agent },
    Target { name: "snapshot", max_len: 65_536, run: snapshot::read },
    Target { name: "manifest", max_len: 8192, run: parsers::manifest },
    Target { name: "layer", max_len: 16_384, run: parsers::layer },
    Target { name: "api", max_len: 8192, run: parsers::api },
    Target { name: "kernel", max_len: 8192, run: parsers::kernel },
    Target { name: "config", max_len: 8192, run: parsers::config },
];

/// The target called `name`.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
