//! The content of large files where it lies on the container's disks, which the host has as files.
//!
//! Reading is a matter of asking the file system where a file is. For writing, a file needs blocks that count as
//! written before anybody writes them: they are reserved (`fallocate`), and then one block of each extent is written
//! under the mount option `dioread_lock` with a high `extent_max_zeroout_kb`. ext4 then declares the whole extent written
//! and zeroes it by one request to the disk (`ext4_ext_convert_to_initialized`), which the VMM carries out as a hole.
//! Where any of that does not hold, the content goes through the connection.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use agent_protocol::tool::{Disk, Piece};
use rustix::fs::{
    Advice, AtFlags, FallocateFlags, Mode, OFlags, StatxFlags, fadvise, fallocate, fstatfs, openat, statx,
};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, fspick};

use super::extents;
use crate::container::root::{DISK, UPPER};
use crate::sysfs::{Sysfs, set};

/// `f_type` of overlays and of ext4 (`linux/magic.h`).
const OVERLAY: u64 = 0x794c_7630;
const EXT4: u64 = 0xef53;

/// Rounds of writing a block of each extent. One converts up to 128 MiB of what the file system shows as one.
const MAX_ROUNDS: usize = 256;

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// A limit for `extent_max_zeroout_kb` that no extent reaches.
const NO_LIMIT: &[u8] = b"4194304\n";

/// Its value as ext4 sets it.
const DEFAULT_LIMIT: &[u8] = b"32\n";

/// The container's two disks.
pub struct Disks<'a> {
    outside: &'a OwnedFd,
    /// Name of the writable layer's block device.
    device: &'a str,
    /// The mount of the container's root.
    root_mount: u64,
}

impl<'a> Disks<'a> {
    /// Looks at the root that this process has now. `None` on a kernel that does not tell mounts apart.
    pub fn find(outside: &'a OwnedFd, device: &'a str) -> Option<Self> {
        let root_mount = mount_of(&File::open("/").ok()?)?;
        Some(Self { outside, device: device.strip_prefix("/dev/")?, root_mount })
    }

    /// Where the content of a file is; `None` if it is not on the two disks. `path` has no links in it.
    pub fn locate(&self, file: &File, path: &Path, size: u64) -> io::Result<Option<Vec<Piece>>> {
        let disk = match kind_of(file) {
            // Walking the upper directory itself.
            Some(EXT4) if path.starts_with(UPPER) => Disk::Writable,
            Some(OVERLAY) if self.is_in_root(file) => self.layer_of(path)?,
            _ => return Ok(None),
        };
        Ok(extents::map(file)?.and_then(|extents| pieces(&extents, disk, size)))
    }

    /// Gives a new file `size` bytes of blocks that the host may write; `None` if that cannot be done.
    pub fn make_room(&self, file: &File, size: u64) -> io::Result<Option<Vec<Piece>>> {
        if kind_of(file) != Some(OVERLAY) || !self.is_in_root(file) {
            return Ok(None);
        }
        match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
            Err(_) => return Ok(None),
        }
        let made = self.declare_written(file, size);
        if matches!(made, Ok(Some(_))) {
            return made;
        }
        // Unwritten blocks are as good as none for whoever writes the content now.
        Ok(None)
    }

    /// Drops what the guest's kernel remembers of a file that the host has written.
    pub fn forget_cache(&self, file: &File) {
        // All of its pages are clean, so all of them go.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
    }

    fn declare_written(&self, file: &File, size: u64) -> io::Result<Option<Vec<Piece>>> {
        let Some(_eager) = Eager::new(self.outside, self.device) else { return Ok(None) };
        let mut unwritten = u64::MAX;
        for _ in 0..MAX_ROUNDS {
            let Some(extents) = extents::map(file)? else { return Ok(None) };
            let left =
                extents.iter().filter(|extent| extent.is_unwritten()).map(|extent| extent.length).sum();
            if left == 0 {
                let whole = pieces(&extents, Disk::Writable, size);
                return Ok(whole.filter(|pieces| pieces.iter().all(|piece| piece.disk == Disk::Writable)));
            }
            if left >= unwritten {
                return Ok(None);
            }
            unwritten = left;
            for extent in extents.iter().filter(|extent| extent.is_unwritten() && extent.logical < size) {
                // Not its first block, which ext4 may just give to the extent before it.
                let inside = if extent.length > 2 * BLOCK { BLOCK } else { 0 };
                file.write_all_at(&[0], extent.logical + inside)?;
            }
            file.sync_data()?;
        }
        Ok(None)
    }

    /// Which layer a file of the overlay is in: the upper one has it under the same path, or else the image does.
    fn layer_of(&self, path: &Path) -> io::Result<Disk> {
        let upper = Path::new(UPPER).join(path.strip_prefix("/").unwrap_or(path));
        let upper = upper.strip_prefix("/").unwrap_or(&upper);
        match openat(self.outside, upper, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(_) => Ok(Disk::Writable),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Disk::Image),
            Err(errno) => Err(errno.into()),
        }
    }

    fn is_in_root(&self, file: &File) -> bool {
        mount_of(file) == Some(self.root_mount)
    }
}

/// The pieces of a file of `size` bytes, holes between its extents and behind them too.
fn pieces(extents: &[extents::Extent], disk: Disk, size: u64) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut position = 0;
    for extent in extents.iter().take_while(|extent| extent.logical < size) {
        let hole = extent.logical.checked_sub(position)?;
        if hole > 0 {
            pieces.push(Piece { disk: Disk::Hole, at: 0, length: hole });
        }
        let length = extent.length.min(size - extent.logical);
        let (disk, at) = if extent.is_unwritten() { (Disk::Hole, 0) } else { (disk, extent.physical) };
        pieces.push(Piece { disk, at, length });
        position = extent.logical + length;
    }
    if position < size {
        pieces.push(Piece { disk: Disk::Hole, at: 0, length: size - position });
    }
    Some(pieces)
}

fn kind_of(file: &File) -> Option<u64> {
    fstatfs(file).ok().and_then(|stat| u64::try_from(stat.f_type).ok())
}

fn mount_of(file: &File) -> Option<u64> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}

/// The file system of the writable layer declares whole extents written, until this is dropped.
struct Eager<'a> {
    layer: OwnedFd,
    device: &'a str,
}

impl<'a> Eager<'a> {
    /// `None` on a kernel that has not all of it.
    fn new(outside: &OwnedFd, device: &'a str) -> Option<Self> {
        let layer = fspick(outside, DISK.trim_start_matches('/'), FsPickFlags::FSPICK_CLOEXEC).ok()?;
        let eager = Self { layer, device };
        set_limit(device, NO_LIMIT).ok()?;
        set(&eager.layer, "dioread_lock").ok()?;
        Some(eager)
    }
}

impl Drop for Eager<'_> {
    fn drop(&mut self) {
        // Without it the file system works as well; only its way of writing is another one.
        let _ = set(&self.layer, "dioread_nolock");
        let _ = set_limit(self.device, DEFAULT_LIMIT);
    }
}

/// Sets `extent_max_zeroout_kb`.
fn set_limit(device: &str, limit: &[u8]) -> io::Result<()> {
    Sysfs::open()?.write(&format!("fs/ext4/{device}/extent_max_zeroout_kb"), limit)
}
