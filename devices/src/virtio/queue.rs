//! A virtqueue in use: pop a chain, complete it, signal the driver.
//!
//! Everything in the rings is the guest's: an index that is too far ahead or a ring that left memory is a
//! [`ProtocolViolation`]. Work per call is bounded by the queue's size, however fast the driver adds.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

pub use super::chain::Chain;
use super::device::{Interrupt, ProtocolViolation};
use crate::GuestRam;

/// Bytes before the elements of the available and of the used ring, and bytes of one element.
const AVAIL_HEADER: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_HEADER: u64 = 4;
/// Where the index is in the used ring.
const USED_INDEX: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is done, with so many bytes written.
    Done(u32),
    /// The device keeps it and completes it later.
    InFlight,
    /// The device takes no more: it goes back, and the device calls again when it has room.
    NotNow,
}

/// One queue of an active device. The memory is passed in, so that chains can borrow it while the queue is
/// used further.
pub struct ActiveQueue {
    index: u16,
    queue: Queue,
    interrupt: Arc<dyn Interrupt>,
    /// The available index when it was last read: it shares a cache line with what the driver writes.
    seen_avail: u16,
    /// Whether the event loop polls, so that the driver need not notify.
    polled: bool,
    /// Whether a chain was completed that the driver does not see yet.
    unpublished: bool,
    /// Whether a chain was completed since the driver was last signalled.
    unsignalled: bool,
    /// The used index at that time.
    signalled_used: u16,
}

impl ActiveQueue {
    /// Takes `queue`, number `index` of the device, into use.
    pub fn new(index: u16, queue: Queue, interrupt: Arc<dyn Interrupt>) -> Self {
        let (seen_avail, signalled_used) = (queue.next_avail(), queue.next_used());
        Self {
            index,
            queue,
            interrupt,
            seen_avail,
            polled: false,
            unpublished: false,
            unsignalled: false,
            signalled_used,
        }
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
        let next = self.queue.next_avail();
        if next == self.seen_avail && !self.look(mem)? {
            return Ok(None);
        }
        let slot = next.checked_rem(self.size()).unwrap_or(0);
        let offset = AVAIL_HEADER.saturating_add(AVAIL_ELEMENT.saturating_mul(slot.into()));
        let at = GuestAddress(self.queue.avail_ring().saturating_add(offset));
        let head: u16 = mem
            .load(at, Ordering::Relaxed)
            .map_err(|source| self.violation(format!("available ring: {source}")))?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(self.chain_at(mem, u16::from_le(head))))
    }

    /// The chain that starts at `head`, which was popped before. Its descriptors may be others by now.
    pub fn chain_at<'m>(&self, mem: &'m GuestRam, head: u16) -> Chain<'m> {
        Chain::new(mem, GuestAddress(self.queue.desc_table()), self.size(), head)
    }

    /// Reads the available index; true if there are chains.
    fn look(&mut self, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
        let count = self.available(mem)?;
        if count > self.size() {
            return Err(self.violation(format!("available ring: {count} chains of {}", self.size())));
        }
        self.seen_avail = self.queue.next_avail().wrapping_add(count);
        Ok(count > 0)
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
        self.complete_unseen(mem, head, written)?;
        self.publish(mem)
    }

    /// As [`ActiveQueue::complete`], but the driver sees it only after [`ActiveQueue::publish`]: for a batch,
    /// and for a merged packet, whose buffers it must see at once (virtio 1.2, section 5.1.6.3.2).
    pub fn complete_unseen(
        &mut self,
        mem: &GuestRam,
        head: u16,
        written: u32,
    ) -> Result<(), ProtocolViolation> {
        if head >= self.size() {
            return Err(self.violation(format!("used ring, head {head}: no such descriptor")));
        }
        let used = self.queue.next_used();
        let slot = used.checked_rem(self.size()).unwrap_or(0);
        let offset = USED_HEADER.saturating_add(USED_ELEMENT.saturating_mul(slot.into()));
        let at = GuestAddress(self.queue.used_ring().saturating_add(offset));
        let element = [u32::from(head).to_le(), written.to_le()];
        mem.write_obj(element, at)
            .map_err(|source| self.violation(format!("used ring, head {head}: {source}")))?;
        self.queue.set_next_used(used.wrapping_add(1));
        self.unpublished = true;
        Ok(())
    }

    /// Shows the driver every chain that was completed.
    pub fn publish(&mut self, mem: &GuestRam) -> Result<(), ProtocolViolation> {
        if std::mem::take(&mut self.unpublished) {
            let at = GuestAddress(self.queue.used_ring().saturating_add(USED_INDEX));
            mem.store(self.queue.next_used().to_le(), at, Ordering::Release)
                .map_err(|source| self.violation(format!("used ring index: {source}")))?;
            self.unsignalled = true;
        }
        Ok(())
    }

    /// Interrupts the driver if chains were completed since the last call and it wants to hear of them.
    pub fn signal(&mut self, mem: &GuestRam) -> Result<(), ProtocolViolation> {
        self.publish(mem)?;
        if std::mem::take(&mut self.unsignalled) && self.wants_interrupt(mem)? {
            self.interrupt.notify_used(self.index);
        }
        Ok(())
    }

    /// From now on the event loop polls the queue, or not. Notifications stay off while it does; whoever
    /// ends that looks at the queue once more, as [`ActiveQueue::process`] does.
    pub fn set_polled(&mut self, polled: bool) {
        self.polled = polled;
    }

    /// Whether the event loop polls the queue.
    pub fn is_polled(&self) -> bool {
        self.polled
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

    /// Asks the driver to notify again, unless the queue is polled. True if chains became available
    /// meanwhile: look once more.
    pub fn enable_notifications(&mut self, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
        if !self.queue.ready() || self.polled {
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
    /// wrote, and signals the driver once at the end. See [`ActiveQueue::process_some`].
    pub fn process<'m>(
        &mut self,
        mem: &'m GuestRam,
        mut handle: impl FnMut(Chain<'m>) -> Result<u32, ProtocolViolation>,
    ) -> Result<(), ProtocolViolation> {
        self.process_some(mem, |chain| handle(chain).map(Handled::Done))
    }

    /// Runs `handle` on each available chain, completes those that are done, and signals the driver once at
    /// the end.
    ///
    /// After as many chains as the queue has descriptors the rest is left for another call, which is
    /// asked for here: a driver that adds chains as fast as they complete cannot hold the event loop.
    pub fn process_some<'m>(
        &mut self,
        mem: &'m GuestRam,
        mut handle: impl FnMut(Chain<'m>) -> Result<Handled, ProtocolViolation>,
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
            match handle(chain)? {
                Handled::Done(written) => self.complete(mem, head, written)?,
                Handled::InFlight => {}
                Handled::NotNow => {
                    self.undo_pop(1);
                    return self.signal(mem);
                }
            }
        }
        if !self.polled {
            self.interrupt.reschedule(self.index);
        }
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
