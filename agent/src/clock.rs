//! The guest's clocks.

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NS_PER_S: u64 = 1_000_000_000;

/// CLOCK_BOOTTIME in ns.
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * NS_PER_S + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Sets the wall clock to `ns` since 1970.
pub fn set_realtime(ns: u64) -> Result<(), Errno> {
    let seconds = i64::try_from(ns / NS_PER_S).map_err(|_| Errno::INVAL)?;
    let nanoseconds = i64::try_from(ns % NS_PER_S).map_err(|_| Errno::INVAL)?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}
