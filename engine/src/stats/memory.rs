//! What the host really gives: the proportional set size of each part of the VMM's memory, `/proc/PID/smaps`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use serde::Serialize;

use crate::container::record::Record;

/// Anonymous memory from this size on is the guest's: the VMM has no such piece of its own.
const GUEST_PIECE: u64 = 1 << 20;

/// In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostMemory {
    /// Guest memory that the host gives; what clones share counts in parts.
    pub guest_pss: u64,
    /// Of it, what is this container's alone.
    pub guest_private: u64,
    /// The VMM itself: program, heap, stacks.
    pub vmm_pss: u64,
    /// What works for it beside the VMM: keeper, server of its shares, user-mode network.
    pub helpers_pss: u64,
    /// What the host's page cache holds of its disks, which the guest may hold once more. `None` where the host's
    /// kernel (before 6.5) cannot tell.
    pub disk_cache: Option<u64>,
}

/// Of the process whose directory in `/proc` is `proc`.
pub fn of(proc: &Path, record: &Record) -> io::Result<HostMemory> {
    let mut memory = parse(&std::fs::read_to_string(proc.join("smaps"))?);
    let disks = [record.data.join("disk.ext4"), record.data.join(&record.spec.rootfs)];
    memory.disk_cache = disks.iter().filter(|disk| disk.exists()).map(|disk| cached(disk)).sum();
    Ok(memory)
}

fn parse(smaps: &str) -> HostMemory {
    let mut memory = HostMemory::default();
    let mut is_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(range) = first.split_once('-') {
            is_guest = guests(range, words.nth(4));
            continue;
        }
        let kib = words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        match (first, is_guest) {
            ("Pss:", true) => memory.guest_pss += kib << 10,
            ("Pss:", false) => memory.vmm_pss += kib << 10,
            ("Private_Dirty:" | "Private_Clean:", true) => memory.guest_private += kib << 10,
            _ => {}
        }
    }
    memory
}

/// Whether a mapping is guest memory: a snapshot's, a kernel's, or a large one without a file.
fn guests(range: (&str, &str), path: Option<&str>) -> bool {
    let address = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    match path {
        Some(path) => path.ends_with("/memory") || path.ends_with("/vmlinux"),
        None => address(range.1).saturating_sub(address(range.0)) >= GUEST_PIECE,
    }
}

/// Bytes of `path` in the page cache: cachestat(2).
fn cached(path: &Path) -> Option<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let file = File::open(path).ok()?;
    // struct cachestat_range { off, len }: length 0 is up to the end.
    let range = [0u64; 2];
    // struct cachestat: pages cached, dirty, under writeback, evicted, recently evicted.
    let mut found = [0u64; 5];
    // SAFETY: both arrays have the size and alignment of the kernel's structures and live across the call.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0 as libc::c_uint)
    };
    let [pages, ..] = found;
    (result == 0).then(|| pages.saturating_mul(4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0020000000 rw-p 00000000 08:01 12 /data/templates/ab/snapshot/memory
Pss: 2048 kB
Private_Clean: 4 kB
Private_Dirty: 1000 kB
7f0030000000-7f0030100000 rw-p 00000000 00:00 0
Pss: 16 kB
7f0040000000-7f0040001000 rw-p 00000000 00:00 0 [heap]
Pss: 3 kB
Private_Dirty: 3 kB
";

    #[test]
    fn the_guest_and_the_vmm_are_told_apart() {
        let memory = parse(SMAPS);
        assert_eq!(memory.guest_pss, (2048 + 16) << 10);
        assert_eq!((memory.guest_private, memory.vmm_pss), (1004 << 10, 3 << 10));
    }

    #[test]
    fn what_was_just_written_is_cached() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 64 << 10]).unwrap();
        assert!(cached(file.path()).is_none_or(|bytes| bytes == 64 << 10));
    }
}
