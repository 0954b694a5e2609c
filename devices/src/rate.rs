//! Limits on what a device carries: token buckets for bytes and operations, per direction.
//!
//! A request may begin as soon as no bucket that it counts in is empty, and then takes all that it needs: the
//! bucket may be left with a debt, which the next request waits for. So a request larger than a bucket passes, and
//! the rate over any longer time is exact.
//!
//! ```text
//! admit(direction) ── yes ──► charge(direction, bytes)
//!                  └─ no ───► the timer of the limiter fires when it may go on
//! ```

mod bucket;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde::{Deserialize, Serialize};

pub(crate) use self::bucket::TokenBucket;

/// What may pass in some time: `size` tokens at once, which come back in `refill_time_ms`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// Bytes or operations. With none there is no limit.
    pub size: u64,
    /// What may pass before that, once.
    #[serde(default)]
    pub one_time_burst: u64,
    /// In milliseconds. With none there is no limit.
    pub refill_time_ms: u64,
}

impl BucketConfig {
    /// So much a second. A tenth of it may pass at once.
    pub fn per_second(rate: u64) -> Self {
        let size = (rate / 10).max(1);
        let refill_time_ms = size.saturating_mul(1000).checked_div(rate).unwrap_or(1000).max(1);
        Self { size, one_time_burst: 0, refill_time_ms }
    }
}

/// Limits on bytes and on operations.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Bytes.
    #[serde(default)]
    pub bandwidth: Option<BucketConfig>,
    /// Requests of a disk, frames of a network interface.
    #[serde(default)]
    pub ops: Option<BucketConfig>,
}

/// Limits of one device.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Into the guest: reads, frames received.
    #[serde(default)]
    pub input: Rates,
    /// Out of the guest: writes, frames sent.
    #[serde(default)]
    pub output: Rates,
    /// Both together.
    #[serde(default)]
    pub total: Rates,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the guest.
    Input,
    /// Out of the guest.
    Output,
}

/// The buckets of one device and the timer that says when to go on.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: Buckets,
    shared: Arc<Shared>,
    /// When the timer fires, if it is set.
    wakes_at: Option<Instant>,
}

/// Changes the limits of a device; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct RateControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    timer: OwnedFd,
    /// Limits that the device has not seen yet.
    pending: Mutex<Option<RateLimits>>,
}

impl RateControl {
    /// Replaces the limits; every bucket is full then.
    pub fn set(&self, limits: RateLimits) {
        *self.0.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
        self.0.fire_in(Duration::ZERO);
    }
}

impl Shared {
    fn fire_in(&self, wait: Duration) {
        // A time of nothing would stop the timer.
        let wait = wait.max(Duration::from_nanos(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let value = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        // Fails only for times that are none and descriptors that are no timers.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value);
    }
}

impl RateLimiter {
    /// A limiter with these limits.
    pub fn new(limits: &RateLimits) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let shared = Arc::new(Shared { timer, pending: Mutex::default() });
        Ok(Self { buckets: Buckets::new(limits, Instant::now()), shared, wakes_at: None })
    }

    /// The handle for changes.
    pub fn control(&self) -> RateControl {
        RateControl(Arc::clone(&self.shared))
    }

    /// The timer, to poll for reading.
    pub fn fd(&self) -> RawFd {
        self.shared.timer.as_fd().as_raw_fd()
    }

    /// Whether a request may begin. If not, the timer fires when it may.
    pub fn admit(&mut self, direction: Direction) -> bool {
        if self.buckets.is_empty() {
            return true;
        }
        let now = Instant::now();
        let wait = self.buckets.wait(direction, now);
        if wait.is_zero() {
            return true;
        }
        let at = now.checked_add(wait);
        if self.wakes_at.is_none_or(|earlier| at.is_some_and(|at| at < earlier)) {
            self.wakes_at = at;
            self.shared.fire_in(wait);
            // Limits that came before that would have to wait for this timer, which replaced theirs.
            if self.renew() {
                self.wakes_at = None;
                return self.admit(direction);
            }
        }
        false
    }

    /// Counts a request that was admitted.
    pub fn charge(&mut self, direction: Direction, bytes: u64) {
        self.buckets.charge(direction, bytes);
    }

    /// Something waits for the timer.
    pub fn is_waiting(&self) -> bool {
        self.wakes_at.is_some()
    }

    /// The timer fired: what waited is to be tried again.
    pub fn process_timer(&mut self) {
        let mut expirations = [0; 8];
        let _ = rustix::io::read(&self.shared.timer, &mut expirations);
        self.wakes_at = None;
        self.renew();
    }

    /// Takes new limits, if there are any.
    fn renew(&mut self) -> bool {
        let pending = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        pending.map(|limits| self.buckets = Buckets::new(&limits, Instant::now())).is_some()
    }
}

/// Those that there are.
#[derive(Debug)]
struct Buckets(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    /// What counts in it; both directions where none is said.
    direction: Option<Direction>,
    counts_bytes: bool,
    bucket: TokenBucket,
}

impl Buckets {
    fn new(limits: &RateLimits, now: Instant) -> Self {
        let groups = [
            (Some(Direction::Input), limits.input),
            (Some(Direction::Output), limits.output),
            (None, limits.total),
        ];
        let entries = groups.into_iter().flat_map(|(direction, rates)| {
            [(true, rates.bandwidth), (false, rates.ops)].into_iter().filter_map(
                move |(counts_bytes, config)| {
                    let bucket = TokenBucket::new(&config?, now)?;
                    Some(Entry { direction, counts_bytes, bucket })
                },
            )
        });
        Self(entries.collect())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&mut self, direction: Direction) -> impl Iterator<Item = &mut Entry> {
        self.0.iter_mut().filter(move |entry| entry.direction.is_none_or(|of| of == direction))
    }

    /// How long nothing may begin.
    fn wait(&mut self, direction: Direction, now: Instant) -> Duration {
        self.of(direction).map(|entry| entry.bucket.wait(now)).max().unwrap_or_default()
    }

    fn charge(&mut self, direction: Direction, bytes: u64) {
        for entry in self.of(direction) {
            entry.bucket.take(if entry.counts_bytes { bytes } else { 1 });
        }
    }
}
