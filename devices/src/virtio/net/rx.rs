//! Frames from the TAP to the guest.
//!
//! One `readv` puts a frame with its header where it belongs. Because nobody knows its length before, the last
//! buffer of the call is scratch space of the VMM: only what does not fit the collected chains is copied from
//! there. Two fields of the header are the device's and are written over what the TAP left there.

use super::counters::Counters;
use super::features;
use super::header::{FLAGS, HEADER_SIZE, MAX_FRAME, NUM_BUFFERS};
use super::rx_chains::RxChains;
use super::tap::FrameIo;
use super::tx::PUBLISH_AFTER;
use super::wire::{NoFrame, Wire};
use crate::GuestRam;
use crate::virtio::device::ProtocolViolation;
use crate::virtio::guest_buffers::IoVecs;
use crate::virtio::queue::ActiveQueue;

/// Why receiving stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxStop {
    /// The TAP has no frame: poll it.
    NoFrame,
    /// The guest has too few buffers: its notification goes on.
    NoBuffers,
    /// As many frames as the queue has descriptors were delivered: go on later.
    Budget,
    /// A limit is reached: the limiter's timer says when to go on.
    Limited,
    /// The TAP is broken or gone.
    Broken,
}

/// What became of one frame.
enum Step {
    /// It was delivered or dropped.
    Done,
    /// Nothing more can be done now.
    Stop(RxStop),
    /// This many chains, all that there were, are too few.
    Starved(u16),
}

/// The receiving half of the device.
pub struct Receiver {
    mergeable: bool,
    guest_checksum: bool,
    /// Room for a whole frame with its header: what did not fit the chains stands where it belongs.
    scratch: Vec<u8>,
    /// Length of a frame that is whole in `scratch` and waits for buffers.
    waiting: Option<usize>,
    /// Length of the last frame: the next one is likely to need as much.
    last_len: usize,
}

impl Receiver {
    /// A receiver for a driver with these features.
    pub fn new(acknowledged: u64) -> Self {
        Self {
            mergeable: features::mergeable(acknowledged),
            guest_checksum: features::guest_checksum(acknowledged),
            scratch: vec![0; HEADER_SIZE + MAX_FRAME],
            waiting: None,
            last_len: 0,
        }
    }

    /// Delivers frames until something is missing, and interrupts the driver.
    pub fn receive(
        &mut self,
        queue: &mut ActiveQueue,
        mem: &GuestRam,
        wire: &mut Wire<impl FrameIo>,
    ) -> Result<RxStop, ProtocolViolation> {
        queue.disable_notifications(mem)?;
        for count in 1..=queue.size() {
            // A frame's buffers are shown together, as they have to be, with those of some other frames.
            if count.is_multiple_of(PUBLISH_AFTER) {
                queue.publish(mem)?;
            }
            let step = match self.waiting {
                Some(len) => self.deliver_waiting(queue, mem, len, wire.counters())?,
                None => self.receive_one(queue, mem, wire)?,
            };
            let stop = match step {
                Step::Done => continue,
                Step::Stop(stop) => stop,
                // Buffers that came meanwhile cause no notification.
                Step::Starved(seen) if has_more(queue, mem, seen)? => continue,
                Step::Starved(_) => RxStop::NoBuffers,
            };
            queue.signal(mem)?;
            return Ok(stop);
        }
        queue.signal(mem)?;
        Ok(RxStop::Budget)
    }

    fn receive_one(
        &mut self,
        queue: &mut ActiveQueue,
        mem: &GuestRam,
        wire: &mut Wire<impl FrameIo>,
    ) -> Result<Step, ProtocolViolation> {
        let mut chains = RxChains::new();
        let likely = HEADER_SIZE.saturating_add(self.last_len);
        chains.gather(queue, mem, likely, self.mergeable)?;
        if chains.is_empty() {
            return Ok(Step::Starved(0));
        }
        let direct = chains.capacity().min(self.scratch.len());
        let mut vecs = IoVecs::new();
        chains.push_space(&mut vecs, direct);
        if let Some(overflow @ [_, ..]) = self.scratch.get_mut(direct..) {
            vecs.push_host(overflow);
        }
        let count = match wire.read(&mut vecs) {
            Ok(count) => count,
            Err(reason) => {
                chains.give_back(queue);
                return Ok(Step::Stop(match reason {
                    NoFrame::Empty => RxStop::NoFrame,
                    NoFrame::Limited => RxStop::Limited,
                    NoFrame::Broken => RxStop::Broken,
                }));
            }
        };
        let counters = wire.counters();
        let Some(len @ 1..=MAX_FRAME) = count.checked_sub(HEADER_SIZE) else {
            // No frame behind the header.
            chains.give_back(queue);
            Counters::count(&counters.rx_dropped);
            return Ok(Step::Done);
        };
        self.last_len = len;
        chains.mark_dirty(0, count.min(direct));
        let want = count;
        chains.gather(queue, mem, want, self.mergeable)?;
        if chains.capacity() < want {
            if let Some(start) = self.scratch.get_mut(..direct) {
                chains.copy_to(0, start);
            }
            return Ok(self.wait_or_drop(chains, queue, len, counters));
        }
        if let Some(overflow) = self.scratch.get(direct..count) {
            chains.copy_from(direct, overflow);
        }
        self.finish(chains, queue, mem, len, counters)
    }

    fn deliver_waiting(
        &mut self,
        queue: &mut ActiveQueue,
        mem: &GuestRam,
        len: usize,
        counters: &Counters,
    ) -> Result<Step, ProtocolViolation> {
        let want = HEADER_SIZE.saturating_add(len);
        let mut chains = RxChains::new();
        chains.gather(queue, mem, want, self.mergeable)?;
        if chains.capacity() < want {
            return Ok(self.wait_or_drop(chains, queue, len, counters));
        }
        if let Some(frame) = self.scratch.get(..want) {
            chains.copy_from(0, frame);
        }
        self.waiting = None;
        self.finish(chains, queue, mem, len, counters)
    }

    /// A frame that is whole in scratch space and does not fit the chains that there are waits for more.
    /// Where the whole queue is too small, or without merging the one chain, it is dropped.
    fn wait_or_drop(
        &mut self,
        chains: RxChains<'_>,
        queue: &mut ActiveQueue,
        len: usize,
        counters: &Counters,
    ) -> Step {
        let seen = chains.count();
        let hopeless = if self.mergeable { chains.is_full(queue) } else { seen > 0 };
        chains.give_back(queue);
        if hopeless {
            self.waiting = None;
            Counters::count(&counters.rx_dropped);
            Step::Done
        } else {
            self.waiting = Some(len);
            Step::Starved(seen)
        }
    }

    /// Completes the header and hands the chains that are filled to the driver, the rest back to the queue.
    fn finish(
        &mut self,
        chains: RxChains<'_>,
        queue: &mut ActiveQueue,
        mem: &GuestRam,
        len: usize,
        counters: &Counters,
    ) -> Result<Step, ProtocolViolation> {
        let completions = chains.completions(HEADER_SIZE.saturating_add(len));
        let used = u16::try_from(completions.len()).unwrap_or(u16::MAX);
        if !self.guest_checksum {
            chains.copy_from(FLAGS, &[0]);
        }
        chains.copy_from(NUM_BUFFERS, &used.to_le_bytes());
        queue.undo_pop(chains.count().saturating_sub(used));
        for &(head, written) in &completions {
            queue.complete_unseen(mem, head, written)?;
        }
        Counters::count(&counters.rx_frames);
        Ok(Step::Done)
    }
}

/// Enables notifications; true if the queue has not just the `seen` chains that were too few.
fn has_more(queue: &mut ActiveQueue, mem: &GuestRam, seen: u16) -> Result<bool, ProtocolViolation> {
    queue.enable_notifications(mem)?;
    Ok(queue.available(mem)? != seen)
}
