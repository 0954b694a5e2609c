//! Adaptive polling: how long the event loop looks at busy devices before it sleeps.
//!
//! A notification costs the guest an exit and the event loop a wake-up. Where requests follow each other
//! closely it is cheaper to look for the next one: the loop goes on looking at the devices that it worked for,
//! with their notifications off, for a [`Window`] of time after the last work.
//!
//! ```text
//!            work within MAX_WINDOW of going to sleep
//!   0 ────────────────────────────────────────────────► MIN ──► ... doubled ... ──► MAX
//!   ▲                                                                                │
//!   └──────────────── slept for longer than MAX_WINDOW ◄─────────────────────────────┘
//! ```
//!
//! An idle VM and one whose requests are rare never poll. Neither does one that has as many vCPUs as it has
//! host CPUs: there the time would be taken from the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::transport::MmioTransport;

/// Longest time without work before the loop sleeps: a few times what a wake-up costs.
const MAX_WINDOW: Duration = Duration::from_micros(50);
/// The window after the first short sleep.
const MIN_WINDOW: Duration = Duration::from_micros(10);
/// How often the loop looks at everything else meanwhile.
const OTHERS_EVERY: Duration = Duration::from_micros(20);

/// How long to poll.
#[derive(Debug, Default)]
struct Window(Duration);

impl Window {
    /// The loop slept for so long until there was work.
    fn slept(&mut self, time: Duration) {
        self.0 = if time > MAX_WINDOW { Duration::ZERO } else { (self.0 * 2).clamp(MIN_WINDOW, MAX_WINDOW) };
    }
}

/// A device that may be polled.
struct Candidate {
    transport: Arc<MmioTransport>,
    /// Set when the loop worked for the device.
    worked: Arc<AtomicBool>,
    polled: bool,
}

/// What polling came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing is polled: the loop may sleep.
    Sleep,
    /// It is time to look at everything else, without sleeping.
    Others,
}

/// Polls devices between two looks at everything else.
pub struct Poller {
    enabled: bool,
    window: Window,
    candidates: Vec<Candidate>,
    /// When the last work was done; while polling.
    last_work: Instant,
    polling: bool,
}

impl Poller {
    /// A poller for a VM that leaves CPUs idle, or one that never polls.
    pub fn new(enabled: bool) -> Self {
        Poller {
            enabled,
            window: Window::default(),
            candidates: Vec::new(),
            last_work: Instant::now(),
            polling: false,
        }
    }

    /// Considers `transport` from now on. The result is to be set when the loop worked for it.
    pub fn add(&mut self, transport: Arc<MmioTransport>) -> Arc<AtomicBool> {
        let worked = Arc::new(AtomicBool::new(false));
        self.candidates.push(Candidate { transport, worked: worked.clone(), polled: false });
        worked
    }

    /// The loop handled events after it slept for `slept`, which is zero if it only looked.
    pub fn woke(&mut self, slept: Duration) {
        if !self.enabled {
            return;
        }
        if !self.polling {
            self.window.slept(slept);
        }
        for candidate in &mut self.candidates {
            let worked = candidate.worked.swap(false, Ordering::Relaxed);
            if worked && !self.window.0.is_zero() {
                if !candidate.polled {
                    candidate.polled = candidate.transport.start_polling();
                }
                self.polling |= candidate.polled;
                self.last_work = Instant::now();
            }
        }
    }

    /// Polls for a while.
    pub fn turn(&mut self) -> Turn {
        if !self.polling {
            return Turn::Sleep;
        }
        let begin = Instant::now();
        loop {
            let mut worked = false;
            for candidate in self.candidates.iter().filter(|candidate| candidate.polled) {
                worked |= candidate.transport.poll();
            }
            let now = Instant::now();
            if worked {
                self.last_work = now;
            } else if now.duration_since(self.last_work) > self.window.0 {
                self.stop();
                return Turn::Sleep;
            }
            if now.duration_since(begin) > OTHERS_EVERY {
                return Turn::Others;
            }
            std::hint::spin_loop();
        }
    }

    /// Polls no more: the devices have their notifications back.
    pub fn stop(&mut self) {
        self.polling = false;
        for candidate in &mut self.candidates {
            if std::mem::take(&mut candidate.polled) {
                candidate.transport.stop_polling();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_short_sleeps_and_closes_after_a_long_one() {
        let mut window = Window::default();
        let mut after = |time| {
            window.slept(time);
            window.0
        };
        let short = Duration::from_micros(30);
        assert_eq!(after(MAX_WINDOW * 2), Duration::ZERO);
        assert_eq!(
            [after(short), after(short), after(short), after(short)].map(|w| w.as_micros()),
            [10, 20, 40, 50]
        );
        assert_eq!(after(MAX_WINDOW * 2), Duration::ZERO);
    }
}
