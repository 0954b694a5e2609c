//! Guest RAM: host mappings and KVM memory slots.

use std::fs::File;

use arch::layout;
use devices::GuestRam;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::errno;

use crate::snapshot::PAGE;

/// Why guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is out of bounds.
    #[error("{mem_size_mib} MiB of guest memory: from {min} to {max} MiB are possible", min = layout::MIN_MEMORY_MIB, max = layout::MAX_MEMORY_MIB)]
    Size {
        /// The size asked for.
        mem_size_mib: u32,
    },
    /// mmap failed.
    #[error("cannot map {size} bytes of guest memory")]
    Map {
        /// Size of the mapping.
        size: u64,
        /// Why.
        source: MmapRegionError,
    },
    /// The file's descriptor could not be duplicated.
    #[error("cannot share the memory file")]
    ShareFile(#[source] std::io::Error),
    /// Regions do not fit into the address space: a bug of the layout.
    #[error("guest memory regions overlap or wrap")]
    Layout,
    /// KVM refused a memory slot.
    #[error("KVM refused the memory slot at {gpa:#x} of {size} bytes")]
    Slot {
        /// Guest-physical start.
        gpa: u64,
        /// Size in bytes.
        size: u64,
        /// Why.
        source: errno::Error,
    },
}

/// Maps `mem_size_mib` of anonymous memory, zero and not yet backed by pages.
pub fn allocate(mem_size_mib: u32) -> Result<GuestRam, MemoryError> {
    build(mem_size_mib, |size, _| {
        builder(size).with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
    })
}

/// Maps `file`, which holds guest memory region after region, privately: writes stay in this VM.
pub fn map_private(mem_size_mib: u32, file: &File) -> Result<GuestRam, MemoryError> {
    let file = std::sync::Arc::new(file.try_clone().map_err(MemoryError::ShareFile)?);
    build(mem_size_mib, |size, offset| {
        builder(size)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
    })
}

type Builder = MmapRegionBuilder<Option<AtomicBitmap>>;

/// A mapping with a bitmap of the pages that this process writes.
fn builder(size: usize) -> Builder {
    let page = std::num::NonZeroUsize::new(PAGE).expect("invariant: pages have bytes");
    MmapRegionBuilder::new_with_bitmap(size, Some(AtomicBitmap::new(size, page)))
}

/// Builds each region of the layout; `mapping` gets its size and its offset from the first region's start.
fn build(mem_size_mib: u32, mapping: impl Fn(usize, u64) -> Builder) -> Result<GuestRam, MemoryError> {
    if !(layout::MIN_MEMORY_MIB..=layout::MAX_MEMORY_MIB).contains(&mem_size_mib) {
        return Err(MemoryError::Size { mem_size_mib });
    }
    let mut regions = Vec::with_capacity(2);
    let mut offset = 0;
    for (start, size) in layout::ram_ranges(u64::from(mem_size_mib) << 20) {
        let region = mapping(size as usize, offset)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .build()
            .map_err(|source| MemoryError::Map { size, source })?;
        regions.push(GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Layout)?);
        offset += size;
    }
    GuestRam::from_regions(regions).map_err(|_| MemoryError::Layout)
}

/// Gives every region to KVM, slot numbers ascending; with `logging` KVM notes which pages vCPUs write.
///
/// The first KVM call after KVM_CREATE_VM: a slot registered after the irqchip or an ioeventfd waits for a
/// grace period of several milliseconds.
pub fn register(vm: &VmFd, memory: &GuestRam, logging: bool) -> Result<(), MemoryError> {
    let flags = if logging { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    for (slot, region) in memory.iter().enumerate() {
        let (gpa, size) = (region.start_addr().0, region.len());
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range `userspace_addr..+memory_size` is the mapping of `region`. It stays mapped while
        // the VM can run: the owner of the VM keeps a clone of `memory` until its vCPU threads have ended.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Slot {
            gpa,
            size,
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_above_3_gib_lies_above_the_hole() {
        let mem = allocate(4096).unwrap();
        let ranges: Vec<_> = mem.iter().map(|region| (region.start_addr().0, region.len())).collect();
        assert_eq!(ranges, [(0, 3 << 30), (4 << 30, 1 << 30)]);
        mem.write_obj(7_u8, GuestAddress((5 << 30) - 1)).unwrap();
    }

    #[test]
    fn sizes_out_of_bounds_are_refused_with_the_bounds() {
        let message = allocate(1).unwrap_err().to_string();
        assert_eq!(message, "1 MiB of guest memory: from 32 to 1048576 MiB are possible");
        assert!(allocate(layout::MAX_MEMORY_MIB + 1).is_err());
    }

    #[test]
    fn a_private_mapping_reads_the_file_and_keeps_writes() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(32 << 20).unwrap();
        file.seek(std::io::SeekFrom::Start(0x3000)).unwrap();
        file.write_all(b"saved").unwrap();
        let first = map_private(32, &file).unwrap();
        first.write_slice(b"other", GuestAddress(0x3000)).unwrap();
        let second = map_private(32, &file).unwrap();
        let mut seen = [0; 5];
        second.read_slice(&mut seen, GuestAddress(0x3000)).unwrap();
        assert_eq!(&seen, b"saved");
    }
}
