//! The driver's side of a split virtqueue, for tests of devices.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use super::device::Interrupt;
use crate::GuestRam;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Guest memory from address 0 with a dirty bitmap of 4 KiB pages.
pub fn guest_ram(size: usize) -> GuestRam {
    let bitmap = AtomicBitmap::new(size, NonZeroUsize::new(4096).unwrap());
    let mapping = MmapRegionBuilder::new_with_bitmap(size, Some(bitmap))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    GuestRam::from_regions(vec![region]).unwrap()
}

/// A buffer that the driver offers.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }
}

/// A queue at `base`, which needs 64 KiB; descriptors are used round robin.
pub struct FakeQueue {
    mem: GuestRam,
    base: u64,
    size: u16,
    next_descriptor: u16,
    avail_idx: u16,
    used_idx: u16,
}

impl FakeQueue {
    /// An empty queue.
    pub fn new(mem: &GuestRam, base: u64, size: u16) -> Self {
        Self { mem: mem.clone(), base, size, next_descriptor: 0, avail_idx: 0, used_idx: 0 }
    }

    /// The same after `index` chains have been used.
    pub fn starting_at(mem: &GuestRam, base: u64, size: u16, index: u16) -> Self {
        for ring in [AVAIL, USED] {
            mem.write_obj(index, GuestAddress(base + ring + 2)).unwrap();
        }
        Self { avail_idx: index, used_idx: index, ..Self::new(mem, base, size) }
    }

    /// What the transport would hand to the device.
    pub fn to_queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        let low = |offset: u64| Some((self.base + offset) as u32);
        queue.set_desc_table_address(low(0), Some(0));
        queue.set_avail_ring_address(low(AVAIL), Some(0));
        queue.set_used_ring_address(low(USED), Some(0));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.mem));
        queue
    }

    /// Makes a chain available and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = position + 1 < buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.write_descriptor(index, *buffer, flags, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// Writes a descriptor as it is.
    pub fn write_descriptor(&self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = GuestAddress(self.base + 16 * u64::from(index));
        self.mem.write_obj(buffer.addr, at).unwrap();
        self.mem.write_obj(buffer.len, GuestAddress(at.0 + 8)).unwrap();
        self.mem.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        self.mem.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        let ring = self.base + AVAIL;
        self.mem.write_obj(head, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.mem.write_obj(self.avail_idx, GuestAddress(ring + 2)).unwrap();
    }

    /// Begins anew, as a driver does after it reset the device.
    pub fn restart(&mut self) {
        *self = Self::new(&self.mem, self.base, self.size);
        self.mem.write_obj(0u16, GuestAddress(self.base + AVAIL + 2)).unwrap();
        self.mem.write_obj(0u16, GuestAddress(self.base + USED + 2)).unwrap();
    }

    /// Overwrites a descriptor and makes a chain available, both at random, for buffers in the first `span`
    /// bytes of memory and a little beyond; now and then the available index jumps.
    pub fn scribble(&mut self, random: &mut Random, span: u64) {
        let addr = random.below(span.saturating_add(0x1000));
        let len = if random.below(16) == 0 { random.below(1 << 32) } else { random.below(2048) };
        let buffer = Buffer { addr, len: len as u32, writable: false };
        let count = u64::from(self.size) + 4;
        let flags = random.below(8) as u16;
        self.write_descriptor(random.below(count) as u16, buffer, flags, random.below(count) as u16);
        if random.below(500) == 0 {
            self.avail_idx = random.below(1 << 16) as u16;
        }
        self.publish(random.below(count) as u16);
    }

    /// The next used element, as head and written length.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let ring = self.base + USED;
        let index: u16 = self.mem.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.used_idx {
            return None;
        }
        let at = ring + 4 + 8 * u64::from(self.used_idx % self.size);
        self.used_idx = self.used_idx.wrapping_add(1);
        let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
        Some((head as u16, len))
    }
}

const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;

/// Numbers that look random and are the same in each run (xorshift).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts with `seed`, which is not zero.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Counts what a device asks of its interrupt.
#[derive(Debug, Default)]
pub struct CountingInterrupt {
    /// Used-buffer notifications.
    pub used: AtomicU32,
    /// Requests for another call.
    pub reschedules: AtomicU32,
}

impl CountingInterrupt {
    /// One to share.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Used-buffer notifications so far.
    pub fn used_count(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Interrupt for CountingInterrupt {
    fn notify_used(&self, _: u16) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn notify_config(&self) {}

    fn reschedule(&self, _: u16) {
        self.reschedules.fetch_add(1, Ordering::Relaxed);
    }
}
