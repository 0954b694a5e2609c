//! The root that the server gets: an empty file system with the shares mounted in it.
//!
//! ```text
//! /shares/0, /shares/1, …   what the guest sees is below /shares
//! /proc/self/fd             how the passthrough reaches extended attributes of what it has open; nothing else of /proc
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use jailer::root::set_attributes;
use rustix::fs::{AtFlags, CWD, FileType, fstat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::cage::CageError;
use crate::{Plan, Share};

/// The tree itself holds nothing but mount points.
const OPTIONS: &std::ffi::CStr = c"mode=755,size=1m";
/// Where what the guest sees begins.
pub const ROOT: &str = "/shares";
const OWN_FILES: &str = "/proc/self/fd";
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Nothing in a share is more than a file to the server.
const HARMLESS: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// Makes the tree of `plan` and hides everything else, in the caller's own mount namespace. `ready` is called while
/// `/proc` is still there.
pub fn enter<T>(plan: &Plan, ready: impl FnOnce() -> io::Result<T>) -> Result<T, CageError> {
    let step = |action| move |error: io::Error| CageError::Step { action, source: error };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|errno| step("make its mounts private")(errno.into()))?;
    // Before the tree covers `place`, and whatever is below it.
    let detached = plan.shares.iter().map(detach).collect::<Result<Vec<_>, _>>()?;
    mount("lighter", &plan.place, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, OPTIONS)
        .map_err(|errno| step("mount its tree")(errno.into()))?;
    let files =
        open_tree(CWD, OWN_FILES, CLONE).map_err(|errno| step("take its open files")(errno.into()))?;
    let make = |path: &str| {
        let path = plan.place.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap_or(&path)).map(|()| path)
    };
    make(OWN_FILES).and_then(|path| attach(files.as_fd(), &path)).map_err(step("mount its open files"))?;
    for (number, (mounted, share)) in detached.iter().zip(&plan.shares).enumerate() {
        make(&format!("{ROOT}/{number}"))
            .and_then(|path| attach(mounted.as_fd(), &path))
            .map_err(|source| CageError::Share { share: share.source.clone(), source })?;
    }
    let value = ready().map_err(step("prepare to serve"))?;
    become_root(&plan.place).map_err(step("enter its tree"))?;
    Ok(value)
}

/// A mount of the share that is nowhere yet.
fn detach(share: &Share) -> Result<OwnedFd, CageError> {
    let error = |source: io::Error| CageError::Share { share: share.source.clone(), source };
    let mounted = open_tree(CWD, &share.source, CLONE | OpenTreeFlags::AT_RECURSIVE)
        .map_err(|errno| error(errno.into()))?;
    let attributes = if share.read_only { HARMLESS | READ_ONLY } else { HARMLESS };
    set_attributes(mounted.as_fd(), attributes, AtFlags::from_bits_retain(libc::AT_RECURSIVE as u32))
        .map_err(error)?;
    Ok(mounted)
}

fn attach(mounted: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(mounted)?.st_mode) == FileType::Directory {
        std::fs::create_dir(path)?;
    } else {
        File::create(path)?;
    }
    Ok(move_mount(mounted, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Makes `tree` the root, takes the old one away and lets nobody write in the new one itself.
fn become_root(tree: &Path) -> io::Result<()> {
    chdir(tree)?;
    // The old root ends up on top of the new one (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    let root = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
    set_attributes(root.as_fd(), READ_ONLY, AtFlags::empty())
}
