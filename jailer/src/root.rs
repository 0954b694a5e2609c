//! A root directory with nothing in it but what a process was given.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::cage::Given;

/// The tree holds nothing but mount points.
const SIZE: &str = "64k";
const EMPTY_PATH: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;

/// Makes an empty, read-only file system the root, in a mount namespace of the caller's own. Each of `given` is there
/// under its path as before; what is not there at all is left out.
pub fn make(given: &[Given]) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let taken = given.iter().filter_map(|given| take(given).transpose()).collect::<io::Result<Vec<_>>>()?;
    let tree = tmpfs()?;
    // Over the old root, which is left below it at once.
    move_mount(&tree, "", CWD, "/", EMPTY_PATH)?;
    fchdir(&tree)?;
    for (given, mount, is_directory) in taken {
        let place = given.path().strip_prefix("/").map_err(io::Error::other)?;
        std::fs::create_dir_all(place.parent().unwrap_or(Path::new(".")))?;
        match is_directory {
            true => std::fs::create_dir_all(place)?,
            false => drop(File::create(place)?),
        }
        move_mount(&mount, "", CWD, place, EMPTY_PATH)?;
    }
    // The old root ends up on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    protect(tree.as_fd())
}

/// A mount of what was given, and whether it is a directory; `None` if it is not there.
fn take(given: &Given) -> io::Result<Option<(&Given, OwnedFd, bool)>> {
    let path = given.path();
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let never = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    match given {
        // Whoever connects needs permission to write; the directory that a socket is in keeps others out.
        Given::Socket(path) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?,
        Given::Readable(_) => {
            set_attributes(mount.as_fd(), never | libc::MOUNT_ATTR_RDONLY, AtFlags::empty())?;
        }
        Given::Writable(_) => set_attributes(mount.as_fd(), never, AtFlags::empty())?,
    }
    Ok(Some((given, mount, metadata.is_dir())))
}

fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "size", SIZE)?;
    fsconfig_set_string(context.as_fd(), "mode", "755")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Nobody writes to the mount `fd` itself any more.
fn protect(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(fd, libc::MOUNT_ATTR_RDONLY, AtFlags::empty())
}

/// Sets attributes (`libc::MOUNT_ATTR_*`) of the mount `fd`, with AT_RECURSIVE of those below it too.
pub fn set_attributes(fd: BorrowedFd<'_>, set: u64, flags: AtFlags) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = (flags | AtFlags::EMPTY_PATH).bits();
    // SAFETY: the path is an empty C string and `attributes` a valid structure of the size that is given; both outlive
    // the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
