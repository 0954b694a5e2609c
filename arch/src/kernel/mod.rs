//! Kernel images: recognises what a file is and loads it for a 64-bit entry.

mod bzimage;
mod elf;

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::map_file::MapFileError;

/// Bytes from the start of a file that tell what it is: the whole bzImage header lies in them.
const HEAD_LEN: usize = 0x290;

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    /// First instruction, to be entered in 64-bit mode with RSI = zero page.
    pub entry: u64,
    /// End (exclusive) of the memory that the kernel needs from the first instruction on.
    pub end: u64,
    /// Setup header of a bzImage; an ELF image has none.
    pub setup_header: Option<setup_header>,
}

impl LoadedKernel {
    /// Longest command line that this kernel takes, terminating zero included.
    pub fn cmdline_max(&self) -> usize {
        self.setup_header.map_or(usize::MAX, |header| (header.cmdline_size as usize).saturating_add(1))
    }

    /// End (exclusive) of the addresses where this kernel finds an initrd.
    pub fn initrd_limit(&self) -> u64 {
        self.setup_header.map_or(u64::MAX, |header| u64::from(header.initrd_addr_max) + 1)
    }
}

/// Why a file cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// The file is neither kind of kernel.
    #[error("it is {found}, not an x86-64 Linux kernel: give an ELF `vmlinux` or a `bzImage`")]
    NotAKernel {
        /// What the first bytes look like.
        found: &'static str,
    },
    /// A kernel for another machine or mode.
    #[error("it is {found}; only x86-64 kernels with a 64-bit entry can be booted")]
    WrongMachine {
        /// What it is instead.
        found: String,
    },
    /// Broken headers.
    #[error("its headers are malformed: {what}")]
    Malformed {
        /// Which field, with its value.
        what: String,
    },
    /// The guest's memory cannot hold it.
    #[error(
        "it needs guest memory up to {needed_mib} MiB and the VM has {has_mib} MiB: give the VM more memory"
    )]
    TooLittleMemory {
        /// End of the kernel in MiB, rounded up.
        needed_mib: u64,
        /// Guest memory below the MMIO hole in MiB.
        has_mib: u64,
    },
    /// It could not be put into guest memory.
    #[error("cannot load it")]
    Load(#[from] MapFileError),
}

/// Loads the kernel in `file` into `mem`, which is freshly made: zero where nothing was written.
pub fn load<M: GuestMemoryBackend>(mem: &M, file: &File) -> Result<LoadedKernel, KernelError> {
    let size = file.metadata().map_err(KernelError::Read)?.len();
    let mut head = [0; HEAD_LEN];
    let head_len = read_head(file, &mut head).map_err(KernelError::Read)?;
    let kernel = match &head[..head_len] {
        [0x7f, b'E', b'L', b'F', ..] => elf::load(mem, file, size, &head)?,
        bytes if bytes.get(0x202..0x206) == Some(b"HdrS") => bzimage::load(mem, file, size, &head)?,
        bytes => return Err(KernelError::NotAKernel { found: describe(bytes) }),
    };
    Ok(kernel)
}

/// Fails where `end` lies beyond the RAM below the MMIO hole.
fn check_fits<M: GuestMemoryBackend>(mem: &M, end: u64) -> Result<(), KernelError> {
    let ram = mem.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
    if end > ram {
        return Err(KernelError::TooLittleMemory { needed_mib: end.div_ceil(1 << 20), has_mib: ram >> 20 });
    }
    Ok(())
}

fn read_head(file: &File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < head.len() {
        match file.read_at(&mut head[len..], len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    Ok(len)
}

fn describe(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "an empty file",
        [0x1f, 0x8b, ..] => "gzip-compressed data",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd-compressed data",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz-compressed data",
        [b'#', b'!', ..] => "a script",
        [b'M', b'Z', ..] => "an EFI program without a Linux setup header",
        _ => "a file of unknown format",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn refused(bytes: &[u8]) -> String {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        load(&mem, &file).unwrap_err().to_string()
    }

    #[test]
    fn other_files_are_named_in_the_refusal() {
        assert!(refused(b"").starts_with("it is an empty file, not an x86-64 Linux kernel"));
        assert!(refused(b"#!/bin/sh\n").contains("a script"));
        assert!(refused(&[0x1f, 0x8b, 8]).contains("gzip"));
        assert!(refused(&[0; 4096]).contains("unknown format"));
    }
}
