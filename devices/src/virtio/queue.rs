//! A virtqueue in use: pop a chain, complete it, signal the driver.
//!
//! Everything in the rings is the guest's: an index that is too far ahead or a ring that left memory is a
//! [`ProtocolViolation`]. Work per call is bounded by the queue's size, however fast the driver adds.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::device::{Interrupt, ProtocolViolation};
use crate::GuestRam;

/// A descriptor chain that the device owns until it completes it.
pub type Chain<'m> = DescriptorChain<&'m GuestRam>;

/// Bytes before the elements of the available and of the used ring, and bytes of one element.
const AVAIL_HEADER: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// One queue of an active device. The memory is passed in, so that chains can borrow it while the queue is
/// used further.
pub struct ActiveQueue {
    index: u16,
    queue: Queue,
    interrupt: Arc<dyn Interrupt>,
    /// Whether a chain was completed since the driver was last signalled.
    unsignalled: bool,
    /// The used index at that time.
    signalled_used: u16,
}

impl ActiveQueue {
    /// Takes `queue`, number `index` of the device, into use.
    pub fn new(index: u16, queue: Queue, interrupt: Arc<dyn Interrupt>) -> Self {
        Self { index, signalled_used: queue.next_used(), queue, interrupt, unsignalled: false }
    }

    /// Takes all queues of an activation into use, in index order.
    pub fn all(queues: Vec<Queue>, interrupt: &Arc<dyn Interrupt>) -> Vec<Self> {
        (0..).zip(queues).map(|(index, queue)| Self::new(index, queue, Arc::clone(interrupt))).collect()
    }

    /// Number of the queue in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors, as the driver chose it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where the queue stands, for saving.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next available chain; `None` when there is none or the driver left the queue unused.
    pub fn pop<'m>(&mut self, mem: &'m GuestRam) -> Result<Option<Chain<'m>>, ProtocolViolation> {
        if !self.queue.ready() {
            return Ok(None);
        }
        match self.queue.iter(mem) {
            Ok(mut available) => Ok(available.next()),
            Err(source) => Err(self.violation(format!("available ring: {source}"))),
        }
    }

    /// Gives the `count` chains that [`ActiveQueue::pop`] returned last back to the available ring.
    pub fn undo_pop(&mut self, count: u16) {
        let next = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(next);
    }

    /// Number of chains that wait to be popped.
    pub fn available(&self, mem: &GuestRam) -> Result<u16, ProtocolViolation> {
        if !self.queue.ready() {
            return Ok(0);
        }
        let index = self
            .queue
            .avail_idx(mem, Ordering::Acquire)
            .map_err(|source| self.violation(format!("available ring: {source}")))?;
        Ok(index.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Returns the chain that starts at `head` to the driver, with `written` bytes of it filled.
    /// The driver hears of it at the next [`ActiveQueue::signal`].
    pub fn complete(&mut self, mem: &GuestRam, head: u16, written: u32) -> Result<(), ProtocolViolation> {
        self.queue
            .add_used(mem, head, written)
            .map_err(|source| self.violation(format!("used ring, head {head}: {source}")))?;
        self.unsignalled = true;
        Ok(())
    }

    /// Returns several chains, as heads with the bytes written, so that the driver sees all of them or none:
    /// it counts on having every buffer of a merged packet at once (virtio 1.2, section 5.1.6.3.2).
    pub fn complete_together(
        &mut self,
        mem: &GuestRam,
        chains: &[(u16, u32)],
    ) -> Result<(), ProtocolViolation> {
        let Some((&(last_head, last_written), rest)) = chains.split_last() else {
            return Ok(());
        };
        for &(head, written) in rest {
            let slot = self.queue.next_used().checked_rem(self.size()).unwrap_or(0);
            let offset = USED_HEADER.saturating_add(USED_ELEMENT.saturating_mul(slot.into()));
            let at = GuestAddress(self.queue.used_ring().saturating_add(offset));
            let element = [u32::from(head).to_le(), written.to_le()];
            mem.write_obj(element, at)
                .map_err(|source| self.violation(format!("used ring, head {head}: {source}")))?;
            // Only `complete` below publishes the index.
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        self.complete(mem, last_head, last_written)
    }

    /// Interrupts the driver if chains were completed since the last call and it wants to hear of them.
    pub fn signal(&mut self, mem: &GuestRam) -> Result<(), ProtocolViolation> {
        if std::mem::take(&mut self.unsignalled) && self.wants_interrupt(mem)? {
            self.interrupt.notify_used(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to notify while the device looks at the queue anyway.
    pub fn disable_notifications(&mut self, mem: &GuestRam) -> Result<(), ProtocolViolation> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue
            .disable_notification(mem)
            .map_err(|source| self.violation(format!("used ring flags: {source}")))
    }

    /// Asks the driver to notify again. True if chains became available meanwhile: look once more.
    pub fn enable_notifications(&mut self, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue
            .enable_notification(mem)
            .map_err(|source| self.violation(format!("used ring flags: {source}")))
    }

    /// Asks the driver to notify of the next chain that it adds, however many wait to be popped.
    pub fn notify_of_next(&mut self, mem: &GuestRam) -> Result<(), ProtocolViolation> {
        let next = self.queue.next_avail();
        let waiting = self.available(mem)?;
        // With EVENT_IDX it notifies when it adds the chain at this position (virtio 1.2, section 2.7.10).
        self.queue.set_next_avail(next.wrapping_add(waiting));
        let enabled = self.enable_notifications(mem);
        self.queue.set_next_avail(next);
        enabled.map(|_| ())
    }

    /// Runs `handle` on each available chain, completes it with the number of bytes that `handle` says it
    /// wrote, and signals the driver once at the end.
    ///
    /// After as many chains as the queue has descriptors the rest is left for another call, which is
    /// asked for here: a driver that adds chains as fast as they complete cannot hold the event loop.
    pub fn process<'m>(
        &mut self,
        mem: &'m GuestRam,
        mut handle: impl FnMut(Chain<'m>) -> Result<u32, ProtocolViolation>,
    ) -> Result<(), ProtocolViolation> {
        self.disable_notifications(mem)?;
        for _ in 0..self.size() {
            let chain = match self.pop(mem)? {
                Some(chain) => chain,
                None if self.enable_notifications(mem)? => {
                    self.disable_notifications(mem)?;
                    continue;
                }
                None => return self.signal(mem),
            };
            let head = chain.head_index();
            let written = handle(chain)?;
            self.complete(mem, head, written)?;
        }
        self.interrupt.reschedule(self.index);
        self.signal(mem)
    }

    /// A violation of the protocol on this queue.
    pub fn violation(&self, what: impl Into<String>) -> ProtocolViolation {
        ProtocolViolation { queue: self.index, what: what.into() }
    }

    /// Virtio 1.2, section 2.7.7: `used_event` with EVENT_IDX, else a flag of the available ring.
    fn wants_interrupt(&mut self, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
        if self.queue.event_idx_enabled() {
            return self.passed_event(mem);
        }
        // The used index must be visible before the flag is looked at.
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags: u16 = mem
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|source| self.violation(format!("available ring flags: {source}")))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Whether the used index went past the driver's `used_event` since it was last looked at.
    ///
    /// `Queue::needs_notification` does not know of chains that were completed together.
    fn passed_event(&mut self, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
        // The used index must be visible before the event is looked at.
        std::sync::atomic::fence(Ordering::SeqCst);
        let offset = u64::from(self.size()).saturating_mul(AVAIL_ELEMENT).saturating_add(AVAIL_HEADER);
        let at = GuestAddress(self.queue.avail_ring().saturating_add(offset));
        let event: u16 = mem
            .load(at, Ordering::Relaxed)
            .map_err(|source| self.violation(format!("available ring event: {source}")))?;
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.signalled_used, new);
        let distance = new.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
        Ok(distance < new.wrapping_sub(old))
    }
}

#[cfg(test)]
mod tests;
