//! Where on its disk a file is: the FIEMAP ioctl (Linux, `Documentation/filesystems/fiemap.rst`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use crate::failure::check;

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;

/// Write what is dirty first.
const FLAG_SYNC: u32 = 1;

/// Extents asked for at once.
const BATCH: usize = 64;

/// More extents than any file of sane size has (stops exhaustion of memory).
const MAX_EXTENTS: usize = 1 << 20;

const LAST: u32 = 0x1;
const UNWRITTEN: u32 = 0x800;
/// Flags of an extent whose bytes are on the disk as they are in the file.
const PLAIN: u32 = LAST | UNWRITTEN | 0x1000 | 0x2000;

/// One run of blocks.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Extent {
    /// Byte in the file.
    pub logical: u64,
    /// Byte on the disk.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

impl Extent {
    /// It has blocks that count as zeros.
    pub fn is_unwritten(&self) -> bool {
        self.flags & UNWRITTEN != 0
    }
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

/// All extents of a file, in order; `None` where the file system does not tell, or keeps a part in another form.
pub fn map(file: &File) -> io::Result<Option<Vec<Extent>>> {
    let mut all: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Fiemap {
            start,
            length: u64::MAX - start,
            flags: FLAG_SYNC,
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
            extents: [Extent::default(); BATCH],
        };
        // SAFETY: the request is a whole struct fiemap with room for as many extents as its count says; both are
        // plain integers, laid out as in linux/fiemap.h, and it outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) };
        if check(result).is_err() {
            return Ok(None);
        }
        let found = request.extents.get(..request.mapped as usize).unwrap_or_default();
        if found.iter().any(|extent| extent.flags & !PLAIN != 0) || all.len() > MAX_EXTENTS {
            return Ok(None);
        }
        all.extend(found);
        match found.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical.saturating_add(last.length),
            _ => return Ok(Some(all)),
        }
    }
}
