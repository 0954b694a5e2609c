//! Placement of the initial RAM file system: as high as possible below the MMIO hole, page aligned.

use std::fs::File;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::PAGE_SIZE;
use crate::map_file::{self, MapFileError};

/// Where the initrd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Why an initrd cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// Its size could not be read.
    #[error("cannot read its size")]
    Size(#[source] std::io::Error),
    /// It does not fit between the kernel and the end of usable memory.
    #[error("its {len} bytes do not fit: {room} bytes are free above the kernel; give the VM more memory")]
    TooBig {
        /// Length of the file.
        len: u64,
        /// Bytes free for it.
        room: u64,
    },
    /// It could not be put into guest memory.
    #[error("cannot load it")]
    Load(#[source] MapFileError),
}

/// Loads `file` below `limit` (exclusive) and at or above `kernel_end`.
///
/// `limit` is the kernel's own bound (`initrd_addr_max` plus one, or `u64::MAX`).
pub fn load<M: GuestMemoryBackend>(
    mem: &M,
    file: &File,
    kernel_end: u64,
    limit: u64,
) -> Result<Initrd, InitrdError> {
    let len = file.metadata().map_err(InitrdError::Size)?.len();
    if len == 0 {
        return Err(InitrdError::Empty);
    }
    let low_ram_end = mem.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
    let floor = kernel_end.next_multiple_of(PAGE_SIZE);
    let ceiling = low_ram_end.min(limit);
    let start =
        ceiling.checked_sub(len).map(|start| start & !(PAGE_SIZE - 1)).filter(|start| *start >= floor);
    let Some(start) = start else {
        return Err(InitrdError::TooBig { len, room: ceiling.saturating_sub(floor) });
    };
    map_file::place(mem, file, 0, start, len).map_err(InitrdError::Load)?;
    Ok(Initrd { start, len })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    fn file(len: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0x5a; len]).unwrap();
        file
    }

    #[test]
    fn it_lies_at_the_end_of_memory_or_below_the_kernels_limit() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let top = load(&mem, &file(0x1234), 0x8000, u64::MAX).unwrap();
        assert_eq!(top, Initrd { start: 0xf_e000, len: 0x1234 });
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0xf_f233)).unwrap(), 0x5a);
        assert_eq!(load(&mem, &file(0x1000), 0, 0x8000).unwrap().start, 0x7000);
    }

    #[test]
    fn too_big_and_empty_are_refused() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        assert!(matches!(load(&mem, &file(0), 0, u64::MAX), Err(InitrdError::Empty)));
        let refused = load(&mem, &file(0x8001), 0xf_8000, u64::MAX);
        assert!(matches!(refused, Err(InitrdError::TooBig { len: 0x8001, room: 0x8000 })));
        assert!(matches!(load(&mem, &file(0x20_0000), 0, u64::MAX), Err(InitrdError::TooBig { .. })));
    }
}
