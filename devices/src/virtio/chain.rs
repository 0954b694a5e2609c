//! A descriptor chain (virtio 1.2, section 2.7.5), read from guest memory one descriptor at a time.
//!
//! Each field is the guest's and may change while it is read. A chain ends where it says so, and silently at
//! the first descriptor that makes no sense: whoever collects it notices that its last descriptor promised
//! another one. It never gives more descriptors than its table has, so a loop ends.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::GuestRam;

/// Bytes of one descriptor.
const DESCRIPTOR_BYTES: u32 = 16;

/// A chain that the device owns until it completes it: an iterator over its descriptors.
#[derive(Clone, Debug)]
pub struct Chain<'m> {
    mem: &'m GuestRam,
    head: u16,
    /// The table that is read: the queue's own, or an indirect one.
    table: GuestAddress,
    /// Descriptors in it.
    table_len: u16,
    indirect: bool,
    next: u16,
    /// Descriptors that may still come.
    left: u16,
    /// Bytes in the descriptors so far: more than 2^32 are not allowed.
    bytes: u32,
}

impl<'m> Chain<'m> {
    /// The chain that starts at `head` of the `table` with `table_len` descriptors.
    pub(super) fn new(mem: &'m GuestRam, table: GuestAddress, table_len: u16, head: u16) -> Self {
        Self { mem, head, table, table_len, indirect: false, next: head, left: table_len, bytes: 0 }
    }

    /// Index of the first descriptor: what completes the chain.
    pub fn head_index(&self) -> u16 {
        self.head
    }

    fn read(&self) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.table_len {
            return None;
        }
        let offset = u64::from(self.next).checked_mul(DESCRIPTOR_BYTES.into())?;
        self.mem.read_obj(GuestAddress(self.table.0.checked_add(offset)?)).ok()
    }

    /// Goes on in the table that `descriptor` is about (section 2.7.5.3).
    fn enter(&mut self, descriptor: Descriptor) -> Option<()> {
        if self.indirect || !descriptor.len().is_multiple_of(DESCRIPTOR_BYTES) {
            return None;
        }
        let len = u16::try_from(descriptor.len().checked_div(DESCRIPTOR_BYTES)?).ok()?;
        self.table = descriptor.addr();
        (self.table_len, self.left) = (len, len);
        (self.next, self.indirect) = (0, true);
        Some(())
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(descriptor)?;
            descriptor = self.read().filter(|inner| !inner.refers_to_indirect_table())?;
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left = if descriptor.has_next() { self.left.saturating_sub(1) } else { 0 };
        self.next = descriptor.next();
        Some(descriptor)
    }
}
