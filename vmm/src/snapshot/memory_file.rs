//! Guest memory as a sparse file: region after region, pages of zeroes as holes.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, OnceLock};

use devices::GuestRam;
use rustix::fs::{SeekFrom as Whence, seek};
use rustix::io::Errno;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};
use vm_memory::{MemoryRegionAddress, ReadVolatile as _, VolatileMemory as _};

use super::identity::PageRun;
use super::pages::{PAGE, PageSet};

/// Bytes looked at and written at once.
const CHUNK: usize = 64 * PAGE;
/// `/proc/PID/pagemap`: one word a page (Linux, `Documentation/admin-guide/mm/pagemap.rst`).
const PAGEMAP_ENTRY: usize = 8;
/// The page is in memory, or in swap.
const PAGE_PRESENT: u64 = 0b11 << 62;

type Region = GuestRegionMmap<Option<AtomicBitmap>>;

/// Writes all of `memory` to the empty file `target`; gives the bytes that are not holes. What is written to the
/// memory meanwhile is in the file or not.
pub fn write(memory: &GuestRam, target: &File) -> io::Result<u64> {
    let mut offset = 0;
    let mut written = 0;
    for region in memory.iter() {
        for range in candidates(region)? {
            written += write_range(region, range, offset, target)?;
        }
        offset += region.len();
    }
    // Holes at the end belong to the memory too.
    target.set_len(offset)?;
    Ok(written)
}

/// Writes the pages of `range` that are not zero.
fn write_range(region: &Region, range: Range<usize>, region_offset: u64, target: &File) -> io::Result<u64> {
    let mut buffer = [0; CHUNK];
    let mut written = 0;
    for start in range.clone().step_by(CHUNK) {
        let buffer = &mut buffer[..CHUNK.min(range.end - start)];
        copy(region, start, buffer)?;
        for run in nonzero_runs(buffer) {
            let position = region_offset + (start + run.start) as u64;
            target.write_all_at(&buffer[run.clone()], position)?;
            written += run.len() as u64;
        }
    }
    Ok(written)
}

/// Copies bytes of `region` from `start` on.
fn copy(region: &Region, start: usize, target: &mut [u8]) -> io::Result<()> {
    let all = region.as_volatile_slice().map_err(io::Error::other)?;
    all.get_slice(start, target.len()).map_err(io::Error::other)?.copy_to(target);
    Ok(())
}

/// Copies of some pages, to be written later.
pub struct Copied {
    /// Position in the file and length of each piece.
    pieces: Vec<(u64, usize)>,
    bytes: Vec<u8>,
}

impl Copied {
    /// Copies `pages` of `memory`.
    pub fn of(memory: &GuestRam, pages: &PageSet) -> io::Result<Self> {
        let mut copied = Copied { pieces: Vec::new(), bytes: Vec::with_capacity(pages.count() * PAGE) };
        each_piece(memory, pages, |region, start, len, position| {
            let end = copied.bytes.len();
            copied.bytes.resize(end + len, 0);
            copied.pieces.push((position, len));
            copy(region, start, &mut copied.bytes[end..])
        })?;
        Ok(copied)
    }

    /// Writes them; gives the bytes.
    pub fn write(&self, target: &File) -> io::Result<u64> {
        let mut rest = &self.bytes[..];
        for (position, len) in &self.pieces {
            let (piece, after) = rest.split_at(*len);
            target.write_all_at(piece, *position)?;
            rest = after;
        }
        Ok(self.bytes.len() as u64)
    }
}

/// Writes `pages` of `memory`, zeroes too; gives the bytes.
pub fn write_pages(memory: &GuestRam, pages: &PageSet, target: &File) -> io::Result<u64> {
    let mut buffer = [0; CHUNK];
    let mut written = 0;
    each_piece(memory, pages, |region, start, len, position| {
        for from in (0..len).step_by(CHUNK) {
            let buffer = &mut buffer[..CHUNK.min(len - from)];
            copy(region, start + from, buffer)?;
            target.write_all_at(buffer, position + from as u64)?;
            written += buffer.len() as u64;
        }
        Ok(())
    })?;
    Ok(written)
}

/// Reads `runs` of pages from `source` to where they belong in `memory`.
pub fn read_runs(memory: &GuestRam, runs: &[PageRun], source: &File) -> io::Result<()> {
    let mut pages = PageSet::new(memory.iter().map(|region| region.len() as usize / PAGE).sum());
    // Ascending, so that the work is bounded by the size of the memory.
    let mut end = 0;
    for range in runs.iter().map(|run| run.range()) {
        if range.start < end || pages.insert(range.clone()).is_none() {
            let what = format!("it claims the impossible pages {range:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        end = range.end;
    }
    each_piece(memory, &pages, |region, start, len, position| {
        let all = region.as_volatile_slice().map_err(io::Error::other)?;
        let mut target = all.get_slice(start, len).map_err(io::Error::other)?;
        let mut source = source;
        source.seek(SeekFrom::Start(position))?;
        source.read_exact_volatile(&mut target).map_err(io::Error::other)
    })
}

/// Calls `act` with the region, the offset in it, the length and the position in the file of each piece of
/// `pages` that lies in one region.
fn each_piece(
    memory: &GuestRam,
    pages: &PageSet,
    mut act: impl FnMut(&Region, usize, usize, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut before = 0;
    let mut regions = memory.iter();
    let mut current = regions.next();
    for run in pages.runs() {
        let (mut start, end) = (run.start * PAGE, run.end * PAGE);
        while let Some(region) = current.filter(|_| start < end) {
            let region_end = before + region.len() as usize;
            if start >= region_end {
                (before, current) = (region_end, regions.next());
                continue;
            }
            let len = end.min(region_end) - start;
            act(region, start - before, len, start as u64)?;
            start += len;
        }
    }
    Ok(())
}

/// Runs of pages in `bytes` that hold something.
fn nonzero_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        let start = index * PAGE;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += page.len(),
            _ => runs.push(start..start + page.len()),
        }
    }
    runs
}

/// Ranges of the region, in order and apart, outside of which every byte is zero.
///
/// Most of a guest's memory was never touched: to look at it would cost page tables, or even page cache. Where there is
/// no `/proc`, as in Firecracker's jail, all of it is looked at.
fn candidates(region: &Region) -> io::Result<Vec<Range<usize>>> {
    if own_memory().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(std::iter::once(0..region.len() as usize).collect());
    }
    let base = region.get_host_address(MemoryRegionAddress(0)).map_err(io::Error::other)? as usize;
    let len = region.len() as usize;
    let own_file = region.file_offset().map(|place| (place.file(), place.start()));
    let mut pages = vec![false; len.div_ceil(PAGE)];
    mark_present(base, &mut pages)?;
    for mapping in mappings(base..base + len)? {
        let range = mapping.start - base..mapping.end - base;
        match own_file {
            _ if !mapping.file => {}
            // What is not in memory is still in the file, if it is anywhere.
            Some((file, start)) => mark_data(file, start, range, &mut pages)?,
            // Parts of a kernel's file.
            None => pages[range.start / PAGE..range.end.div_ceil(PAGE)].fill(true),
        }
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (index, _) in pages.iter().enumerate().filter(|(_, marked)| **marked) {
        let start = index * PAGE;
        match ranges.last_mut() {
            Some(range) if range.end == start => range.end += PAGE,
            _ => ranges.push(start..start + PAGE),
        }
    }
    Ok(ranges)
}

/// Marks the pages of this process from address `base` on that are in memory or in swap.
fn mark_present(base: usize, pages: &mut [bool]) -> io::Result<()> {
    let pagemap = &own_memory()?.pagemap;
    let mut position = (base / PAGE * PAGEMAP_ENTRY) as u64;
    let mut buffer = [0; 512 * PAGEMAP_ENTRY];
    for pages in pages.chunks_mut(512) {
        let entries = &mut buffer[..pages.len() * PAGEMAP_ENTRY];
        pagemap.read_exact_at(entries, position)?;
        position += entries.len() as u64;
        for (page, entry) in pages.iter_mut().zip(entries.chunks_exact(PAGEMAP_ENTRY)) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("invariant: chunks have this size"));
            *page |= entry & PAGE_PRESENT != 0;
        }
    }
    Ok(())
}

/// Marks the pages of `range` for which `file`, mapped from its byte `start` on, has data.
fn mark_data(file: &File, start: u64, range: Range<usize>, pages: &mut [bool]) -> io::Result<()> {
    let end = start + range.end as u64;
    let mut position = start + range.start as u64;
    while position < end {
        let data = match seek(file, Whence::Data(position)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        position = seek(file, Whence::Hole(data))?.min(end);
        let first = (data - start) as usize / PAGE;
        let last = ((position - start) as usize).div_ceil(PAGE);
        pages[first..last].fill(true);
    }
    Ok(())
}

/// What the kernel says of this process's memory.
struct OwnMemory {
    /// `/proc/PID/pagemap`
    pagemap: File,
    /// `/proc/PID/maps`
    maps: Mutex<File>,
}

/// Opened once, before the process is confined: a cage has no `/proc`.
fn own_memory() -> io::Result<&'static OwnMemory> {
    static OWN: OnceLock<OwnMemory> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let own = OwnMemory {
        pagemap: File::open("/proc/self/pagemap")?,
        maps: Mutex::new(File::open("/proc/self/maps")?),
    };
    Ok(OWN.get_or_init(|| own))
}

/// Opens what [`write`] needs while it can be opened.
pub fn prepare() -> io::Result<()> {
    own_memory().map(drop)
}

/// A part of this process's address space.
struct Mapping {
    start: usize,
    end: usize,
    /// A file is behind it.
    file: bool,
}

/// The mappings within `range`, cut to it.
fn mappings(range: Range<usize>) -> io::Result<Vec<Mapping>> {
    let mut maps = own_memory()?.maps.lock().expect("invariant: nobody panics while holding the lock");
    maps.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    maps.read_to_string(&mut text)?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let start = usize::from_str_radix(start, 16).ok()?.max(range.start);
            let end = usize::from_str_radix(end, 16).ok()?.min(range.end);
            // Permissions, offset and device, then the inode.
            let file = words.nth(3)? != "0";
            (start < end).then_some(Mapping { start, end, file })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory;

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn untouched_and_zero_pages_are_holes() {
        let ram = memory::allocate(64).unwrap();
        ram.write_slice(b"first", GuestAddress(0x5000)).unwrap();
        ram.write_slice(&[0; 8192], GuestAddress(0x10_0000)).unwrap();
        ram.write_slice(b"last", GuestAddress((64 << 20) - 4)).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write(&ram, &file).unwrap(), 2 * 4096);
        let bytes = content(&file);
        assert_eq!(
            (bytes.len(), &bytes[0x5000..0x5005], &bytes[(64 << 20) - 4..]),
            (64 << 20, &b"first"[..], &b"last"[..])
        );
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_clone_of_a_file_is_written_with_what_it_did_not_touch() {
        let ram = memory::allocate(32).unwrap();
        ram.write_slice(b"old", GuestAddress(0x7000)).unwrap();
        ram.write_slice(b"kept", GuestAddress(0x20_0000)).unwrap();
        let first = tempfile::tempfile().unwrap();
        write(&ram, &first).unwrap();
        let clone = memory::map_private(32, &first).unwrap();
        clone.write_slice(b"new", GuestAddress(0x7000)).unwrap();
        clone.write_slice(b"more", GuestAddress(0x30_0000)).unwrap();
        let second = tempfile::tempfile().unwrap();
        assert_eq!(write(&clone, &second).unwrap(), 3 * 4096);
        let bytes = content(&second);
        assert_eq!(&bytes[0x7000..0x7003], b"new");
        assert_eq!(&bytes[0x20_0000..0x20_0004], b"kept");
        assert_eq!(&bytes[0x30_0000..0x30_0004], b"more");
    }

    #[test]
    fn memory_above_the_hole_follows_the_memory_below_it() {
        let ram = memory::allocate(3100).unwrap();
        ram.write_slice(b"high", GuestAddress(4 << 30)).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write(&ram, &file).unwrap(), 4096);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 3 << 30).unwrap();
        assert_eq!(&bytes, b"high");
    }
}
