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
    /// The pool is empty.
    #[error(
        "cannot map {size} bytes of guest memory in pages of 2 MiB, which the host must have set aside: write more than \
         {} to /proc/sys/vm/nr_hugepages, or do without huge pages",
        size >> 21
    )]
    HugePages {
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

/// How much memory a guest has, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShape {
    /// From the start on, in MiB.
    pub boot_mib: u32,
    /// That can be plugged while it runs, in MiB.
    pub hotplug_mib: u32,
    /// Where it is no file's, it is the host's pages of 2 MiB.
    pub huge_pages: bool,
}

impl From<u32> for MemoryShape {
    fn from(boot_mib: u32) -> Self {
        MemoryShape { boot_mib, hotplug_mib: 0, huge_pages: false }
    }
}

impl MemoryShape {
    /// All of it, in bytes.
    pub fn bytes(self) -> u64 {
        self.boot_bytes() + self.hotplug_bytes()
    }

    /// What is there from the start on, in bytes.
    pub fn boot_bytes(self) -> u64 {
        u64::from(self.boot_mib) << 20
    }

    /// What can be plugged, in bytes.
    pub fn hotplug_bytes(self) -> u64 {
        u64::from(self.hotplug_mib) << 20
    }

    /// Start and size of what can be plugged, if there is something.
    pub fn hotplug_range(self) -> Option<(u64, u64)> {
        let size = Some(self.hotplug_bytes()).filter(|size| *size > 0)?;
        Some((layout::hotplug_start(self.boot_bytes()), size))
    }
}

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// Maps memory of this `shape`, zero. Pages of 4 KiB come when they are touched; huge ones are reserved here.
pub fn allocate(shape: impl Into<MemoryShape>) -> Result<GuestRam, MemoryError> {
    let shape = shape.into();
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let flags = if shape.huge_pages {
        anonymous | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB
    } else {
        anonymous | libc::MAP_NORESERVE
    };
    build(shape, |size, _| builder(size).with_mmap_flags(flags))
}

/// The part of `memory` that is there from the start on.
pub fn at_boot(memory: &GuestRam, shape: MemoryShape) -> GuestRam {
    let range = shape.hotplug_range();
    let rest = range.and_then(|(start, size)| memory.remove_region(GuestAddress(start), size).ok());
    rest.map_or_else(|| memory.clone(), |(rest, _)| rest)
}

/// Maps `file`, which holds guest memory region after region, privately: writes stay in this VM.
pub fn map_private(shape: impl Into<MemoryShape>, file: &File) -> Result<GuestRam, MemoryError> {
    let file = std::sync::Arc::new(file.try_clone().map_err(MemoryError::ShareFile)?);
    build(MemoryShape { huge_pages: false, ..shape.into() }, |size, offset| {
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
fn build(shape: MemoryShape, mapping: impl Fn(usize, u64) -> Builder) -> Result<GuestRam, MemoryError> {
    let sizes = layout::MIN_MEMORY_MIB..=layout::MAX_MEMORY_MIB;
    let whole = shape.boot_mib.saturating_add(shape.hotplug_mib);
    if let Some(mem_size_mib) = [shape.boot_mib, whole].into_iter().find(|mib| !sizes.contains(mib)) {
        return Err(MemoryError::Size { mem_size_mib });
    }
    let mut regions = Vec::with_capacity(3);
    let mut offset = 0;
    // What can be plugged is the last region.
    for (start, size) in layout::ram_ranges(shape.boot_bytes()).into_iter().chain(shape.hotplug_range()) {
        let region = mapping(size as usize, offset)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .build()
            .map_err(|source| match shape.huge_pages {
                true => MemoryError::HugePages { size, source },
                false => MemoryError::Map { size, source },
            })?;
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
    fn memory_to_be_plugged_lies_above_the_rest() {
        let shape = MemoryShape { hotplug_mib: 128, ..64.into() };
        let mem = allocate(shape).unwrap();
        let ranges = |mem: &GuestRam| -> Vec<_> {
            mem.iter().map(|region| (region.start_addr().0, region.len())).collect()
        };
        assert_eq!(ranges(&mem), [(0, 64 << 20), (4 << 30, 128 << 20)]);
        assert_eq!(ranges(&at_boot(&mem, shape)), [(0, 64 << 20)]);
        assert_eq!(ranges(&at_boot(&mem, 64.into())), ranges(&mem));
        assert!(allocate(MemoryShape { hotplug_mib: layout::MAX_MEMORY_MIB, ..64.into() }).is_err());
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
