//! Ranges of guest pages, and giving their memory back to the host.

use std::io;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::GuestRam;

/// Bytes of a page of the balloon (section 5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// Pages of RAM.
pub fn count(ram: &GuestRam) -> u32 {
    let bytes = ram.iter().fold(0u64, |sum, region| sum.saturating_add(region.len()));
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

/// Guest physical addresses from `start` to before `end`, both at the start of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRange {
    start: u64,
    end: u64,
}

impl PageRange {
    /// From `start` to before `end`, both at the start of a page.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// The page with this number.
    pub fn of_pfn(pfn: u32) -> Self {
        let start = u64::from(pfn).saturating_mul(PAGE_SIZE);
        Self { start, end: start.saturating_add(PAGE_SIZE) }
    }

    /// The whole pages of a buffer: one that it has a part of stays.
    pub fn of_buffer(addr: u64, len: u32) -> Self {
        let end = addr.saturating_add(len.into()) / PAGE_SIZE;
        let start = addr.div_ceil(PAGE_SIZE);
        Self { start: start.saturating_mul(PAGE_SIZE), end: end.saturating_mul(PAGE_SIZE) }
    }

    fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// Ranges that do not touch, ascending: however a guest names its pages, each is given back once and
/// neighbours together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PageRanges(Vec<PageRange>);

impl FromIterator<PageRange> for PageRanges {
    fn from_iter<I: IntoIterator<Item = PageRange>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let touches = next.start <= kept.end;
            if touches {
                kept.end = kept.end.max(next.end);
            }
            touches
        });
        Self(ranges)
    }
}

impl PageRanges {
    /// The pieces of RAM that the ranges are; what is not RAM is the guest's fault.
    pub fn within(self, ram: &GuestRam) -> Result<Vec<RamPiece<'_>>, String> {
        let mut pieces = Vec::with_capacity(self.0.len());
        for PageRange { mut start, end } in self.0 {
            // A range may go on in the next region.
            while start < end {
                let piece = RamPiece::at(ram, start, end)
                    .ok_or_else(|| format!("pages {start:#x}..{end:#x} are not the guest's RAM"))?;
                start = start.saturating_add(piece.len);
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }
}

/// Whole pages of one region of RAM.
pub struct RamPiece<'m> {
    region: &'m GuestRegionMmap<Option<vm_memory::bitmap::AtomicBitmap>>,
    /// From the start of the region, in bytes.
    offset: u64,
    len: u64,
}

impl<'m> RamPiece<'m> {
    /// What of `start..end` is in the region of `start`, if there is one.
    fn at(ram: &'m GuestRam, start: u64, end: u64) -> Option<Self> {
        ram.iter().find_map(|region| {
            let offset = start.checked_sub(region.start_addr().raw_value())?;
            let left = region.len().checked_sub(offset).filter(|&left| left >= PAGE_SIZE)?;
            let len = end.saturating_sub(start).min(left);
            Some(Self { region, offset, len })
        })
    }

    /// Gives the memory back. The pages are there again when they are touched: zero where the memory is
    /// anonymous, what the file holds where it is a private mapping, zero where it is a shared one, from
    /// whose file they are removed.
    pub fn give_back(&self) -> io::Result<()> {
        let usize_of = |value| usize::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        let (offset, len) = (usize_of(self.offset)?, usize_of(self.len)?);
        let shared = self.region.flags() & libc::MAP_SHARED != 0;
        let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        let address = self.region.as_ptr().wrapping_add(offset);
        // SAFETY: `at` made sure that `offset..offset + len` is inside the region, whose mapping lives as
        // long as the borrow of it. Its content changes, which it may at any time: it is the guest's, and
        // no Rust reference to it exists.
        if unsafe { libc::madvise(address.cast(), len, advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
