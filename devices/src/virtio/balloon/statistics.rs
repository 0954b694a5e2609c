//! What the guest says about its memory (virtio 1.2, section 5.5.6.3).
//!
//! ```text
//! driver ── buffer with figures ─► device keeps it ── timer ─► used ─► driver fills it anew ─► …
//! ```
//!
//! The driver's figures are its own: nothing vouches for them.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::virtio::guest_buffers::GuestBuffers;

/// Figures that have a number in the specification.
pub const FIGURES: usize = 10;
/// Bytes of one figure: its number and its value.
const FIGURE_BYTES: usize = 10;
/// Figures that are read of one buffer: more than Linux has.
const MAX_FIGURES: usize = 32;

/// The figures by their numbers (VIRTIO_BALLOON_S_*): swapped in, swapped out, major faults, minor faults, free, total,
/// available, caches (all in bytes but the faults), huge pages allocated, and failed to be.
pub type Figures = [Option<u64>; FIGURES];

/// The figures and how often they are asked for.
#[derive(Debug)]
pub struct Statistics {
    timer: OwnedFd,
    interval_s: AtomicU16,
    figures: Mutex<Figures>,
}

impl Statistics {
    /// Asked for every `interval_s` seconds. Opens a timer.
    pub(super) fn open(interval_s: u16) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let statistics = Self { timer, interval_s: AtomicU16::new(0), figures: Mutex::default() };
        statistics.set_interval(interval_s)?;
        Ok(statistics)
    }

    /// Asks for the figures every `interval_s` seconds from now on; 0 is never.
    pub fn set_interval(&self, interval_s: u16) -> io::Result<()> {
        let interval = Timespec { tv_sec: interval_s.into(), tv_nsec: 0 };
        let spec = Itimerspec { it_interval: interval, it_value: interval };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        self.interval_s.store(interval_s, Ordering::Relaxed);
        Ok(())
    }

    /// How often they are asked for, in seconds.
    pub fn interval_s(&self) -> u16 {
        self.interval_s.load(Ordering::Relaxed)
    }

    /// The latest figures.
    pub fn figures(&self) -> Figures {
        *self.lock()
    }

    /// Readable when it is time to ask.
    pub(super) fn fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// It was readable.
    pub(super) fn process_timer(&self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
    }

    /// Takes the figures in `buffers`; unknown ones are overlooked.
    pub(super) fn take(&self, buffers: &GuestBuffers<'_>) {
        let mut bytes = [0; MAX_FIGURES * FIGURE_BYTES];
        let whole = buffers.len().min(bytes.len());
        let bytes = bytes.get_mut(..whole).unwrap_or_default();
        buffers.copy_to(0, bytes);
        let mut figures = self.lock();
        for figure in bytes.chunks_exact(FIGURE_BYTES) {
            let (Some((tag, value)), mut number) = (figure.split_first_chunk::<2>(), [0; 8]) else {
                continue;
            };
            number.copy_from_slice(value);
            if let Some(place) = figures.get_mut(usize::from(u16::from_le_bytes(*tag))) {
                *place = Some(u64::from_le_bytes(number));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
