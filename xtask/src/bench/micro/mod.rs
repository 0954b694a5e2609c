//! The micro-guest (`xtask/micro_guest`) under lighter and under QEMU: built from source, started, read out.

mod contender;
mod program;

use std::path::{Path, PathBuf};

use anyhow::Context;

pub use self::contender::{Lighter, Qemu};
use crate::build;

/// Guest memory in MiB: what the micro-guest's buffers need.
pub const MEM_SIZE_MIB: u32 = 256;

/// What a measured loop of the micro-guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Requests or frames.
    pub operations: u64,
    /// Cycles of the processor's counter.
    pub cycles: u64,
    /// How often the guest had to notify the device.
    pub notifications: u64,
}

impl Measured {
    /// Microseconds for one operation.
    pub fn micros(&self, clock: Clock) -> f64 {
        self.cycles as f64 / clock.hertz / self.operations as f64 * 1e6
    }

    /// The line `micro-guest: result operations=N cycles=N notifications=N`.
    fn parse(line: &str) -> Option<Self> {
        let words = line.strip_prefix("micro-guest: result ")?;
        let number = |name: &str| {
            words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        Some(Self {
            operations: number("operations")?,
            cycles: number("cycles")?,
            notifications: number("notifications")?,
        })
    }
}

/// Rate of the processor's counter, which guests read unscaled.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    hertz: f64,
}

impl Clock {
    /// Measures it against the system's clock.
    fn measure() -> Self {
        let read = || {
            // SAFETY: every x86-64 processor has RDTSC, and Linux lets programs use it.
            (unsafe { core::arch::x86_64::_rdtsc() }, std::time::Instant::now())
        };
        let (cycles, time) = read();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let (end_cycles, end_time) = read();
        let seconds = end_time.duration_since(time).as_secs_f64();
        Self { hertz: (end_cycles - cycles) as f64 / seconds }
    }
}

/// What every run needs.
pub struct Bench {
    /// The VMM program that the release `lighter` carries.
    pub vmm: PathBuf,
    /// The micro-guest.
    pub program: PathBuf,
    /// Rate of the cycle counter.
    pub clock: Clock,
    scratch: tempfile::TempDir,
}

impl Bench {
    /// Builds lighter and the micro-guest.
    pub fn prepare() -> anyhow::Result<Self> {
        let vmm = build::machine(&build::lighter()?)?;
        let scratch = tempfile::tempdir().context("cannot make a directory for the benchmark")?;
        let program = program::build(scratch.path())?;
        Ok(Self { vmm, program, clock: Clock::measure(), scratch })
    }

    /// A directory that goes away with the benchmark.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_read() {
        let line = "micro-guest: result operations=1000 cycles=2000000 notifications=3";
        let measured = Measured::parse(line).unwrap();
        assert_eq!(measured, Measured { operations: 1000, cycles: 2_000_000, notifications: 3 });
        assert_eq!(measured.micros(Clock { hertz: 2e9 }), 1.0);
        assert_eq!(Measured::parse("micro-guest: end"), None);
        assert_eq!(Measured::parse("micro-guest: result operations=x cycles=1 notifications=0"), None);
    }
}
