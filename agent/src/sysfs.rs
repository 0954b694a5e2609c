//! sysfs through a mount that nobody else sees: the container's own one is read-only and the container's.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_flag, fsmount, fsopen, fspick,
};

/// Longest file that is read: they are a page at most.
const MAX_BYTES: usize = 4096;

/// A mount of sysfs at no place.
pub struct Sysfs(OwnedFd);

impl Sysfs {
    /// Makes the mount.
    pub fn open() -> io::Result<Self> {
        let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        Ok(Self(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// Writes `bytes` to the file `path`, relative to `/sys`. For as long as this takes, the superblock, which is one for
    /// all mounts of sysfs, is writable.
    pub fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
        let superblock = fspick(&self.0, "", flags)?;
        set(&superblock, "rw")?;
        let written = openat(&self.0, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, bytes));
        set(&superblock, "ro")?;
        Ok(written.map(drop)?)
    }

    /// The text of the file `path`.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let file = openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [0; MAX_BYTES];
        let count = rustix::io::read(&file, &mut buffer[..])?;
        Ok(String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned())
    }

    /// Where the link `path` leads.
    pub fn link(&self, path: &str) -> io::Result<String> {
        Ok(rustix::fs::readlinkat(&self.0, path, Vec::new())?.to_string_lossy().into_owned())
    }
}

/// Changes a mount option of the file system that `context` is about.
pub fn set(context: &OwnedFd, option: &str) -> rustix::io::Result<()> {
    fsconfig_set_flag(context.as_fd(), option)?;
    fsconfig_reconfigure(context.as_fd())
}
