//! A split virtqueue (virtio 1.2, section 2.7) as a driver that polls: no interrupt is ever wanted.

use core::sync::atomic::{Ordering, fence};

use crate::memory;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;

/// Used-buffer notifications come when the used index passes `used_event`: it is kept this far ahead.
const FAR_AHEAD: u16 = 0x8000;
/// ... and moved so often.
const MOVE_EVERY: u16 = 0x1000;

/// One queue.
pub struct Queue {
    base: u64,
    size: u16,
    notify: u64,
    index: u32,
    avail: u16,
    /// The available index that the device last heard of.
    told: u16,
    used: u16,
    /// How often the device was notified.
    pub notifications: u64,
}

impl Queue {
    /// An empty queue at `base`.
    pub fn new(base: u64, size: u16, notify: u64, index: u32) -> Self {
        memory::clear(base, 0x1_0000);
        let queue = Self { base, size, notify, index, avail: 0, told: 0, used: 0, notifications: 0 };
        queue.want_no_interrupt();
        queue
    }

    /// Of descriptor table, available and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.base + AVAIL, self.base + USED]
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        memory::write(at, address);
        memory::write(at + 8, len);
        memory::write(at + 12, flags);
        memory::write(at + 14, next);
    }

    /// Makes the chain at `head` available; the device sees it after [`Queue::publish`].
    pub fn add(&mut self, head: u16) {
        memory::write(self.base + AVAIL + 4 + 2 * u64::from(self.avail % self.size), head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows the device what was added and notifies it if it wants that.
    pub fn publish(&mut self) {
        fence(Ordering::Release);
        memory::write(self.base + AVAIL + 2, self.avail);
        fence(Ordering::SeqCst);
        let event: u16 = memory::read(self.base + USED + 4 + 8 * u64::from(self.size));
        let passed = self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(self.told);
        self.told = self.avail;
        if passed {
            self.notifications += 1;
            memory::write(self.notify, self.index);
        }
    }

    /// Number of chains that were used and not taken.
    pub fn used(&self) -> u16 {
        let used: u16 = memory::read(self.base + USED + 2);
        fence(Ordering::Acquire);
        used.wrapping_sub(self.used)
    }

    /// Takes the next used chain, which is there: its head and the bytes written.
    pub fn take(&mut self) -> (u16, u32) {
        let at = self.base + USED + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        if self.used % MOVE_EVERY == 0 {
            self.want_no_interrupt();
        }
        (memory::read::<u32>(at) as u16, memory::read(at + 4))
    }

    fn want_no_interrupt(&self) {
        memory::write(self.base + AVAIL + 4 + 2 * u64::from(self.size), self.used.wrapping_add(FAR_AHEAD));
    }
}
