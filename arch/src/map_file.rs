//! Puts bytes of a file into guest memory without copying what can be mapped.
//!
//! Whole pages are mapped privately over the guest's RAM: a kernel of 24 MB costs microseconds instead of
//! the 8 ms of a copy, and guests of one kernel share its untouched pages in the page cache. A page that
//! the guest writes becomes its own. The file must therefore not be changed in place while a VM runs from
//! it; replacing it by rename is fine.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::PAGE_SIZE;

/// Bytes could not be brought from a file into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MapFileError {
    /// The range is not guest RAM.
    #[error("guest memory {start:#x}..{end:#x} is not within the guest's RAM")]
    OutsideRam {
        /// First address.
        start: u64,
        /// End of the range.
        end: u64,
    },
    /// mmap failed.
    #[error("cannot map the file")]
    Map(#[source] rustix::io::Errno),
    /// Seeking failed.
    #[error("cannot seek to byte {offset}")]
    Seek {
        /// Position in the file.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// Copying failed; a file that is too short ends here.
    #[error("cannot read {len} bytes at byte {offset}")]
    Read {
        /// Position in the file.
        offset: u64,
        /// Wanted length.
        len: u64,
        /// Why.
        source: GuestMemoryError,
    },
}

/// Makes guest memory at `gpa` hold bytes `offset..offset + len` of `file`.
///
/// The caller has checked that the file is at least `offset + len` long: a mapped page beyond its end
/// would raise SIGBUS when touched.
pub fn place<M: GuestMemoryBackend>(
    mem: &M,
    file: &File,
    offset: u64,
    gpa: u64,
    len: u64,
) -> Result<(), MapFileError> {
    let end = gpa.checked_add(len).ok_or(MapFileError::OutsideRam { start: gpa, end: u64::MAX })?;
    let outside = || MapFileError::OutsideRam { start: gpa, end };
    let size = usize::try_from(len).map_err(|_| outside())?;
    if !mem.check_range(GuestAddress(gpa), size) {
        return Err(outside());
    }
    let first = gpa.next_multiple_of(PAGE_SIZE);
    let last = end & !(PAGE_SIZE - 1);
    let congruent = offset % PAGE_SIZE == gpa % PAGE_SIZE;
    // A range over two regions has two mappings; both its parts are copied.
    let one_region = mem.get_slice(GuestAddress(gpa), size).is_ok();
    if !congruent || !one_region || first >= last {
        return copy(mem, file, offset, gpa, len);
    }
    copy(mem, file, offset, gpa, first - gpa)?;
    map(mem, file, offset + (first - gpa), first, last - first)?;
    copy(mem, file, offset + (last - gpa), last, end - last)
}

fn copy<M: GuestMemoryBackend>(
    mem: &M,
    mut file: &File,
    offset: u64,
    gpa: u64,
    len: u64,
) -> Result<(), MapFileError> {
    if len == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(offset)).map_err(|source| MapFileError::Seek { offset, source })?;
    mem.read_exact_volatile_from(GuestAddress(gpa), &mut file, len as usize)
        .map_err(|source| MapFileError::Read { offset, len, source })
}

fn map<M: GuestMemoryBackend>(
    mem: &M,
    file: &File,
    offset: u64,
    gpa: u64,
    len: u64,
) -> Result<(), MapFileError> {
    let slice = mem
        .get_slice(GuestAddress(gpa), len as usize)
        .map_err(|_| MapFileError::OutsideRam { start: gpa, end: gpa + len })?;
    let host = slice.ptr_guard_mut().as_ptr();
    // SAFETY: `host..host + len` lies inside one region of `mem`, a mapping that outlives this call and is
    // unmapped as a whole when the region is dropped. No Rust reference to guest memory exists. Addresses
    // and offset are multiples of the page size: `place` rounded them.
    unsafe {
        rustix::mm::mmap(
            host.cast(),
            len as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            file,
            offset,
        )
    }
    .map_err(MapFileError::Map)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn pattern(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn edges_and_whole_pages_arrive_and_neighbours_stay_zero() {
        let (file, bytes) = pattern(0x5000);
        for (offset, gpa, len) in
            [(0x10, 0x2010, 0x3123), (0x10, 0x2011, 0x3123), (0, 0x1000, 0x10), (5, 5, 0)]
        {
            let mem = memory();
            place(&mem, &file, offset, gpa, len).unwrap();
            let mut seen = vec![0; 0x10000];
            mem.read_slice(&mut seen, GuestAddress(0)).unwrap();
            let mut expected = vec![0; 0x10000];
            expected[gpa as usize..(gpa + len) as usize]
                .copy_from_slice(&bytes[offset as usize..(offset + len) as usize]);
            assert!(seen == expected, "offset {offset:#x} gpa {gpa:#x} len {len:#x}");
        }
    }

    #[test]
    fn a_write_by_the_guest_does_not_reach_the_file() {
        let (file, bytes) = pattern(0x2000);
        let mem = memory();
        place(&mem, &file, 0, 0x1000, 0x2000).unwrap();
        mem.write_slice(&[0xff; 16], GuestAddress(0x1000)).unwrap();
        let again = memory();
        place(&again, &file, 0, 0, 0x2000).unwrap();
        let mut seen = [0; 16];
        again.read_slice(&mut seen, GuestAddress(0)).unwrap();
        assert_eq!(seen, bytes[..16]);
    }

    #[test]
    fn a_range_outside_ram_is_refused() {
        let (file, _) = pattern(0x2000);
        assert!(matches!(place(&memory(), &file, 0, 0xf000, 0x2000), Err(MapFileError::OutsideRam { .. })));
        assert!(matches!(place(&memory(), &file, 0, u64::MAX, 2), Err(MapFileError::OutsideRam { .. })));
    }
}
