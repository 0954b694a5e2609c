//! Windows of persistent memory: files mapped into the guest's physical address space, above its RAM.
//!
//! ```text
//! file ── mmap ──► GuestRegionMmap ── memory slot ──► guest (no exit to read)
//!                        └────────── devices: a descriptor may point into it, as into RAM
//! ```
//!
//! A read-only window is a private mapping behind a read-only memory slot: a vCPU's write leaves the guest
//! and is dropped; a write through a virtqueue that a guest points there makes a private page of this VM.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arch::layout;
use devices::virtio::block::disk_options;
use devices::virtio::pmem::Window;
use devices::{GuestRam, held};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestRegionMmap};
use vmm_sys_util::errno;

use crate::config::{PmemConfig, VmConfig};

/// Most bytes of one window: what a guest's 36-bit physical addresses leave beside its RAM.
const MAX_SIZE: u64 = 32 << 30;

/// Why a file cannot be persistent memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It does not open.
    #[error("cannot open the persistent memory {}", path.display())]
    Open {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a device or something else that has no size.
    #[error("the persistent memory {} is not a regular file", path.display())]
    NotAFile {
        /// Of the file.
        path: PathBuf,
    },
    /// Its size is no window's.
    #[error(
        "the persistent memory {} has {size} bytes: it must not be empty nor larger than 32 GiB, and a multiple of 2 MiB if it is written",
        path.display()
    )]
    Size {
        /// Of the file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The address range could not be had.
    #[error("cannot reserve {size} bytes for the persistent memory {}", path.display())]
    Reserve {
        /// Of the file.
        path: PathBuf,
        /// Of the window in bytes.
        size: u64,
        /// Why.
        source: MmapRegionError,
    },
    /// The file could not be mapped.
    #[error("cannot map the persistent memory {}", path.display())]
    Map {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: rustix::io::Errno,
    },
    /// Windows overlap or leave the address space: a bug of the layout.
    #[error("persistent memory overlaps or wraps")]
    Layout,
    /// KVM refused a memory slot.
    #[error("KVM refused the memory slot of persistent memory at {:#x} of {} bytes", window.start, window.size)]
    Slot {
        /// The window.
        window: Window,
        /// Why.
        source: errno::Error,
    },
}

/// One file in its window.
pub struct Pmem {
    /// The file, for the device that flushes it.
    pub file: File,
    /// Where it is.
    pub window: Window,
    region: Arc<Region>,
}

type Region = GuestRegionMmap<Option<vm_memory::bitmap::AtomicBitmap>>;

/// Opens and maps all persistent memory of `config`, the plugged one last.
pub fn open(config: &VmConfig) -> Result<Vec<Pmem>, PmemError> {
    let mut start = layout::pmem_start(config.memory().boot_bytes(), config.memory().hotplug_bytes());
    let mut all = Vec::new();
    for config in config.pmem.iter().chain(&config.plugged.pmem) {
        let pmem = Pmem::open(config, start)?;
        start += pmem.window.size;
        all.push(pmem);
    }
    Ok(all)
}

/// Gives every window to KVM, slot numbers from `first_slot` on. When [`crate::memory::register`] is called.
pub fn register(vm: &VmFd, windows: &[Pmem], first_slot: usize) -> Result<(), PmemError> {
    for (slot, pmem) in (first_slot..).zip(windows) {
        let window = pmem.window;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: if window.read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: window.start,
            memory_size: window.size,
            userspace_addr: pmem.region.as_ptr() as u64,
        };
        // SAFETY: the range `userspace_addr..+memory_size` is the mapping of `region`. It stays mapped while
        // the VM can run: the owner of the VM keeps its devices, which have the result of `with_ram`, until
        // its vCPU threads have ended.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| PmemError::Slot { window, source })?;
    }
    Ok(())
}

/// Guest memory as devices see it: RAM and every window. A guest may write a buffer to a disk that it has
/// mapped from a file in persistent memory.
pub fn with_ram(ram: &GuestRam, windows: &[Pmem]) -> Result<GuestRam, PmemError> {
    windows.iter().try_fold(ram.clone(), |memory, pmem| {
        memory.insert_region(pmem.region.clone()).map_err(|_| PmemError::Layout)
    })
}

impl Pmem {
    fn open(config: &PmemConfig, start: u64) -> Result<Self, PmemError> {
        let path = || config.path.clone();
        let read_only = config.read_only;
        let open_error = |source| PmemError::Open { path: path(), source };
        let file = held::open(&disk_options(read_only), &config.path).map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(PmemError::NotAFile { path: path() });
        }
        let len = metadata.len();
        let whole = read_only || len.is_multiple_of(layout::PMEM_ALIGN);
        if len == 0 || len > MAX_SIZE || !whole {
            return Err(PmemError::Size { path: path(), size: len });
        }
        let size = len.next_multiple_of(layout::PMEM_ALIGN);
        // What is behind the file's end reads as zero instead of raising SIGBUS.
        let mapping = MmapRegionBuilder::new_with_bitmap(size as usize, None)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| PmemError::Reserve { path: path(), size, source })?;
        let sharing = if read_only { MapFlags::PRIVATE } else { MapFlags::SHARED };
        // SAFETY: the range is part of `mapping`, which was just made, is not smaller than `len` and is
        // unmapped as a whole when it is dropped. Nothing refers to it yet.
        unsafe {
            rustix::mm::mmap(
                mapping.as_ptr().cast(),
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                sharing | MapFlags::FIXED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }
        .map_err(|source| PmemError::Map { path: path(), source })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(PmemError::Layout)?;
        Ok(Pmem { file, window: Window { start, size, read_only }, region: Arc::new(region) })
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn config(pmem: Vec<PmemConfig>) -> VmConfig {
        let text = r#"{"vcpus":1,"mem_size_mib":32,"kernel":{"path":"/k"}}"#;
        VmConfig { pmem, ..serde_json::from_str(text).unwrap() }
    }

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, impl Fn(bool) -> PmemConfig + use<>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let path = file.path().to_owned();
        (file, move |read_only| PmemConfig { path: path.clone(), read_only })
    }

    #[test]
    fn windows_follow_each_other_and_read_zero_past_the_file() {
        let (_file, pmem) = file(&[7; 5000]);
        let windows = open(&config(vec![pmem(true), pmem(true)])).unwrap();
        let place = |pmem: &Pmem| (pmem.window.start, pmem.window.size);
        assert_eq!(
            windows.iter().map(place).collect::<Vec<_>>(),
            [(4 << 30, 2 << 20), ((4 << 30) + (2 << 20), 2 << 20)]
        );
        let memory = with_ram(&crate::memory::allocate(32).unwrap(), &windows).unwrap();
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        for start in windows.iter().map(|pmem| pmem.window.start) {
            assert_eq!([0, 4999, 5000, (2 << 20) - 1].map(|at| byte(start + at)), [7, 7, 0, 0]);
        }
    }

    #[test]
    fn writes_reach_the_file_only_where_they_may() {
        let (held, pmem) = file(&vec![7; 2 << 20]);
        for (read_only, expected) in [(true, 7), (false, 8)] {
            let windows = open(&config(vec![pmem(read_only)])).unwrap();
            let memory = with_ram(&crate::memory::allocate(32).unwrap(), &windows).unwrap();
            memory.write_obj(8_u8, GuestAddress(4 << 30)).unwrap();
            assert_eq!(std::fs::read(held.path()).unwrap()[0], expected);
        }
    }

    #[test]
    fn files_that_cannot_be_memory_are_refused() {
        let refusal = |pmem| open(&config(vec![pmem])).err().map(|error| error.to_string()).unwrap();
        let at = |path: &str| PmemConfig { path: path.into(), read_only: true };
        assert_eq!(refusal(at("/missing")), "cannot open the persistent memory /missing");
        assert_eq!(refusal(at("/dev/null")), "the persistent memory /dev/null is not a regular file");
        let (_held, odd) = file(&[0; 4096]);
        assert!(refusal(odd(false)).contains("has 4096 bytes"));
        assert!(open(&config(vec![odd(true)])).is_ok());
        let (_held, empty) = file(&[]);
        assert!(refusal(empty(true)).contains("has 0 bytes"));
    }
}
