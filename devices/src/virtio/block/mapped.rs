//! Reads out of a mapping of the disk, for what was read before.
//!
//! A read of pages that are in the host's page cache costs a system call and a walk through the cache, page by
//! page; out of a mapping it costs the copy. But the first touch of a mapped page is a fault, without the
//! readahead that a file read brings. So the first read of a page is a file read, which is noted here, and
//! only the next ones take the mapping. A disk that is read once, as most are while a guest boots, is never
//! mapped page by page and costs no page tables.
//!
//! Mapping and file are coherent: writes go to the file and are seen here. Where somebody cuts the file off, a
//! read beyond its last page fails; the rest of that page reads as zeroes.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::request::ByteRange;
use crate::fault_copy::{self, Fault, FaultCopy};
use crate::virtio::guest_buffers::GuestBuffers;

const PAGE: u64 = 4096;
/// Larger disks are not mapped. Bounds what the notes take: one bit a page, 32 MiB.
const MAX_BYTES: u64 = 1 << 40;

/// A mapped disk.
pub struct MappedDisk {
    base: *const u8,
    len: usize,
    copy: FaultCopy,
    /// One bit a page: it was read from the file.
    seen: Vec<u64>,
}

// SAFETY: the mapping belongs to the process and not to a thread; it is only read.
unsafe impl Send for MappedDisk {}

impl MappedDisk {
    /// Maps the first `size` bytes of `file`; `None` where that cannot be: reads then take the file.
    pub fn open(file: &File, size: u64) -> Option<Self> {
        let len = usize::try_from(size).ok().filter(|_| size <= MAX_BYTES)?;
        let copy = fault_copy::install()?;
        // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        // A page that is not in the cache any more is read alone, not with its surroundings.
        // SAFETY: advice for the mapping just made.
        unsafe { libc::madvise(base, len, libc::MADV_RANDOM) };
        let words = size.div_ceil(PAGE).div_ceil(64);
        let seen = vec![0; usize::try_from(words).ok()?];
        Some(Self { base: base.cast_const().cast(), len, copy, seen })
    }

    /// Whether all of `range` was read before.
    pub fn was_read(&self, range: ByteRange) -> bool {
        pages(range).all(|page| self.seen.get(word(page)).is_some_and(|word| word & bit(page) != 0))
    }

    /// Notes that all of `range` was read.
    pub fn note_read(&mut self, range: ByteRange) {
        for page in pages(range) {
            if let Some(word) = self.seen.get_mut(word(page)) {
                *word |= bit(page);
            }
        }
    }

    /// Copies `range` to the start of `target`, which has room for it.
    pub fn read(&self, range: ByteRange, target: &GuestBuffers<'_>) -> Result<(), Fault> {
        let outside = |_| Fault;
        let mut offset = usize::try_from(range.offset).map_err(outside)?;
        let len = usize::try_from(range.len).map_err(outside)?;
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Fault);
        }
        for piece in target.pieces(0, len) {
            let guard = piece.ptr_guard_mut();
            // SAFETY: the source is within the mapping, as checked above, which lives as long as `self`. The
            // target is guest memory, mapped as long as `target` lives, and never a Rust reference.
            unsafe { self.copy.copy(guard.as_ptr(), self.base.wrapping_add(offset), piece.len()) }?;
            offset = offset.saturating_add(piece.len());
        }
        Ok(())
    }
}

/// Numbers of the pages that `range` touches.
fn pages(range: ByteRange) -> std::ops::Range<u64> {
    range.offset / PAGE..range.offset.saturating_add(range.len).div_ceil(PAGE)
}

/// Where the bit of `page` is.
fn word(page: u64) -> usize {
    usize::try_from(page / 64).unwrap_or(usize::MAX)
}

fn bit(page: u64) -> u64 {
    1 << (page % 64)
}

impl Drop for MappedDisk {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, which nothing points into any more.
        unsafe { libc::munmap(self.base.cast_mut().cast(), self.len) };
    }
}
