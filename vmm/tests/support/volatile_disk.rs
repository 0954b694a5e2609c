//! A disk with a cache that loses its content when the power is cut: one file on a file system of the test's own
//! (FUSE, `include/uapi/linux/fuse.h`), so that the VMM under test opens, writes and syncs it as any other.
//!
//! ```text
//! VMM ── write ─► kernel ── FUSE_WRITE ─► cache ── FUSE_FSYNC ─► medium
//! VMM ── fdatasync ─► FUSE_FSYNC ┘           └── cut: some sectors get there, the others are gone
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;
const MAX_WRITE: u32 = 128 << 10;
const FILE_NODE: u64 = 2;
const IN_HEADER: usize = 40;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// What is behind the disk.
#[derive(Debug)]
pub struct Medium {
    durable: Vec<u8>,
    cache: Vec<u8>,
    /// Sectors of the cache that are not on the medium.
    unflushed: BTreeSet<usize>,
    /// There is no power any more.
    is_cut: bool,
    /// Flushes so far.
    pub flushes: u64,
}

/// The disk.
pub struct VolatileDisk {
    directory: TempDir,
    medium: Arc<Mutex<Medium>>,
    server: Option<JoinHandle<()>>,
}

impl VolatileDisk {
    /// A disk that holds `content`; the reason where this process may not mount.
    pub fn open(content: Vec<u8>) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let target = std::ffi::CString::new(directory.path().to_str().unwrap()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0", device.as_raw_fd());
        // SAFETY: all four are strings that end in zero.
        let mounted = unsafe {
            libc::mount(c"test".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast())
        };
        if mounted != 0 {
            return Err(format!("mount: {}", std::io::Error::last_os_error()));
        }
        let cache = content.clone();
        let medium =
            Medium { durable: content, cache, unflushed: BTreeSet::new(), is_cut: false, flushes: 0 };
        let medium = Arc::new(Mutex::new(medium));
        let server = std::thread::spawn({
            let medium = medium.clone();
            move || serve(device, &medium)
        });
        Ok(VolatileDisk { directory, medium, server: Some(server) })
    }

    /// Path of the disk.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.medium.lock().unwrap().flushes
    }

    /// Cuts the power: of what was not flushed only the sectors that `survives` names reach the medium, and whatever
    /// comes from now on fails. Gives the number of sectors that were lost.
    pub fn cut(&self, mut survives: impl FnMut() -> bool) -> usize {
        let mut medium = self.medium.lock().unwrap();
        let medium = &mut *medium;
        medium.is_cut = true;
        let mut lost = 0;
        for sector in std::mem::take(&mut medium.unflushed) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            if survives() {
                medium.durable[range.clone()].copy_from_slice(&medium.cache[range]);
            } else {
                lost += 1;
            }
        }
        lost
    }

    /// What the medium holds; the disk is gone.
    pub fn content(mut self) -> Vec<u8> {
        self.unmount();
        std::mem::take(&mut self.medium.lock().unwrap().durable)
    }

    fn unmount(&mut self) {
        let target = std::ffi::CString::new(self.directory.path().to_str().unwrap()).unwrap();
        // SAFETY: a string that ends in zero. Detached, so that what is open still gets its answers.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Answers the kernel until the file system is unmounted.
fn serve(mut device: File, medium: &Mutex<Medium>) {
    let mut request = vec![0; MAX_WRITE as usize + 8192];
    while let Ok(len) = device.read(&mut request) {
        let (header, body) = request[..len].split_at(IN_HEADER);
        let (opcode, unique, node) = (u32_at(header, 4), u64_at(header, 8), u64_at(header, 16));
        if matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
            continue;
        }
        let (error, data) = match answer(opcode, node, body, &mut medium.lock().unwrap()) {
            Ok(data) => (0, data),
            Err(errno) => (-errno, Vec::new()),
        };
        let len = u32::try_from(16 + data.len()).unwrap();
        let reply = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes(), &data].concat();
        // Who asked may be dead.
        let _ = device.write_all(&reply);
    }
}

fn answer(opcode: u32, node: u64, body: &[u8], medium: &mut Medium) -> Result<Vec<u8>, i32> {
    match opcode {
        INIT => {
            let mut out = vec![0; 64];
            for (at, value) in [(0, 7), (4, 31), (8, MAX_WRITE), (12, 1 << 5), (20, MAX_WRITE), (24, 1)] {
                out[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            }
            Ok(out)
        }
        LOOKUP if body == b"disk\0" => {
            let mut out = [FILE_NODE, 1, 3600, 3600, 0].map(u64::to_le_bytes).concat();
            out.extend(attributes(FILE_NODE, medium));
            Ok(out)
        }
        LOOKUP => Err(libc::ENOENT),
        GETATTR | SETATTR => {
            let mut out = [3600, 0].map(u64::to_le_bytes).concat();
            out.extend(attributes(node, medium));
            Ok(out)
        }
        OPEN => Ok(vec![0; 16]),
        FLUSH | RELEASE => Ok(Vec::new()),
        _ if medium.is_cut => Err(libc::EIO),
        READ => {
            let begin = usize::try_from(u64_at(body, 8)).unwrap().min(medium.cache.len());
            let end = (begin + u32_at(body, 16) as usize).min(medium.cache.len());
            Ok(medium.cache[begin..end].to_vec())
        }
        WRITE => {
            let (begin, len) = (usize::try_from(u64_at(body, 8)).unwrap(), u32_at(body, 16) as usize);
            let place = medium.cache.get_mut(begin..begin + len).ok_or(libc::ENOSPC)?;
            place.copy_from_slice(&body[40..40 + len]);
            medium.unflushed.extend(begin / SECTOR..(begin + len).div_ceil(SECTOR));
            Ok([u32_at(body, 16), 0].map(u32::to_le_bytes).concat())
        }
        FSYNC => {
            medium.flushes += 1;
            for sector in std::mem::take(&mut medium.unflushed) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                medium.durable[range.clone()].copy_from_slice(&medium.cache[range]);
            }
            Ok(Vec::new())
        }
        _ => Err(libc::ENOSYS),
    }
}

/// `struct fuse_attr`.
fn attributes(node: u64, medium: &Medium) -> Vec<u8> {
    let size = if node == FILE_NODE { medium.cache.len() as u64 } else { 0 };
    let mode = if node == FILE_NODE { libc::S_IFREG | 0o666 } else { libc::S_IFDIR | 0o777 };
    let mut out = [node, size, size / 512, 0, 0, 0].map(u64::to_le_bytes).concat();
    out.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
