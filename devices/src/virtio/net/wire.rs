//! The TAP with what is counted and reported about it.

use std::io::ErrorKind;
use std::sync::Arc;

use super::counters::Counters;
use super::header::HEADER_SIZE;
use super::tap::FrameIo;
use crate::rate::{Direction, RateLimiter};
use crate::virtio::guest_buffers::{GuestBuffers, IoVecs};

/// The TAP did not give a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFrame {
    /// It has none now.
    Empty,
    /// It may give none now: the limiter's timer says when.
    Limited,
    /// It is broken or gone.
    Broken,
}

/// What became of a frame for the TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The TAP took it.
    Taken,
    /// The TAP takes none now.
    Full,
    /// It may get none now: the limiter's timer says when.
    Limited,
    /// The host refuses this one: it is lost, as on a wire.
    Refused,
}

/// The host's side of the device.
pub struct Wire<T> {
    tap: T,
    counters: Arc<Counters>,
    failure: Option<String>,
    limiter: RateLimiter,
}

impl<T: FrameIo> Wire<T> {
    /// The wire behind `tap`, which carries no more than `limiter` admits.
    pub fn new(tap: T, limiter: RateLimiter) -> Self {
        Self { tap, counters: Arc::default(), failure: None, limiter }
    }

    /// What limits it.
    pub fn limiter(&self) -> &RateLimiter {
        &self.limiter
    }

    /// The limiter's timer fired.
    pub fn process_timer(&mut self) {
        self.limiter.process_timer();
    }

    /// The TAP itself.
    pub fn tap(&self) -> &T {
        &self.tap
    }

    /// The counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the host last failed at, once.
    pub fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Says which work the host may leave to the guest. Without offloads, a guest that expects them still
    /// gets frames it understands.
    pub fn set_offloads(&mut self, flags: libc::c_uint) {
        if let Err(error) = self.tap.set_offloads(flags) {
            self.failure = Some(format!("cannot set offloads {flags:#x} of the TAP: {error}"));
            let _ = self.tap.set_offloads(0);
        }
    }

    /// Reads one frame with its header and returns their length.
    pub fn read(&mut self, vecs: &mut IoVecs<'_>) -> Result<usize, NoFrame> {
        if !self.limiter.admit(Direction::Input) {
            return Err(NoFrame::Limited);
        }
        let count = self.tap.receive(vecs).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => NoFrame::Empty,
            _ => {
                self.failure = Some(format!("cannot read from the TAP, it is not used any more: {error}"));
                NoFrame::Broken
            }
        })?;
        self.limiter.charge(Direction::Input, frame_bytes(count));
        Ok(count)
    }

    /// Sends what is left of an earlier frame; true if something is left still.
    pub fn flush(&mut self) -> bool {
        // A broken wire takes nothing any more; reading from it says so.
        self.tap.flush().unwrap_or_default()
    }

    /// Writes one frame with its header.
    pub fn write(&mut self, frame: &GuestBuffers<'_>) -> Sent {
        if !self.limiter.admit(Direction::Output) {
            return Sent::Limited;
        }
        let Err(error) = self.tap.send(frame) else {
            self.limiter.charge(Direction::Output, frame_bytes(frame.len()));
            Counters::count(&self.counters.tx_frames);
            return Sent::Taken;
        };
        match error.kind() {
            ErrorKind::WouldBlock => return Sent::Full,
            // The guest's header makes no sense; no fault of the host.
            ErrorKind::InvalidInput => {}
            _ => self.failure = Some(format!("cannot write to the TAP: {error}")),
        }
        Counters::count(&self.counters.tx_dropped);
        Sent::Refused
    }
}

/// Length of a frame without the header that virtio puts before it.
fn frame_bytes(with_header: usize) -> u64 {
    u64::try_from(with_header.saturating_sub(HEADER_SIZE)).unwrap_or(u64::MAX)
}
