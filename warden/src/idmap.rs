//! User IDs: a container's are IDs of the host that nobody else has, its files keep the image's.
//!
//! The image and the writable layer are seen through mounts with an ID map (mount_setattr(2), Linux 5.12), so that one
//! image serves every container, and a layer holds what a VM would have written.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use agent::failure::{Context as _, Failure, check};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pipe::pipe;

/// The range of IDs that systemd reserves for containers (systemd.io, "Users, Groups, UIDs and GIDs").
const FIRST: u32 = 524_288;
/// Containers that find room in it.
const RANGES: u32 = 28_664;
/// IDs of one container.
pub const COUNT: u32 = 65_536;

/// The host's ID of the root of container `id`. Two containers have the same only by chance.
pub fn base(id: &str) -> u32 {
    // FNV-1a: stable, and good enough to spread random IDs.
    let hash =
        id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST + (hash % RANGES) * COUNT
}

/// A user namespace in which 0 is `base`, only for its map.
pub fn namespace(base: u32) -> Result<OwnedFd, Failure> {
    let (wait, go) = pipe().during("make a pipe")?;
    // SAFETY: the warden has one thread; the child makes system calls only and leaves by _exit.
    let pid = check(unsafe { libc::fork() }).during("fork")?;
    if pid == 0 {
        drop(wait);
        // SAFETY: as above; `pause` returns only by a signal, and the parent sends SIGKILL.
        unsafe {
            let code = libc::unshare(libc::CLONE_NEWUSER);
            let _ = rustix::io::write(&go, &[u8::from(code == 0)]);
            libc::pause();
            libc::_exit(0);
        }
    }
    drop(go);
    let mut made = [0u8; 1];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut made[..]));
    let map = format!("0 {base} {COUNT}\n");
    let opened = (|| {
        if read != Ok(1) || made != [1] {
            return Err(Failure::agent(
                "this host lets nobody make user namespaces (user.max_user_namespaces)",
            ));
        }
        for file in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid}/{file}"), &map).during("write the map of user IDs")?;
        }
        let namespace =
            std::fs::File::open(format!("/proc/{pid}/ns/user")).during("open the user namespace")?;
        Ok(OwnedFd::from(namespace))
    })();
    // SAFETY: the child is ours and not reaped, so the ID is its own; waitpid may ignore the status.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    opened
}

/// A copy of the mount at `path`, not yet placed anywhere.
pub fn copy_of(path: &std::path::Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).during(&format!("take {}", path.display()))
}

/// Puts a detached mount at `target`, its IDs mapped as `map` says.
pub fn place(mount: &OwnedFd, target: &str, map: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    if let Some(map) = map {
        set_map(mount, map).during(
            "map user IDs on a mount (this needs Linux 5.12 and a file system that allows it: ext4, xfs, btrfs, tmpfs \
             from 6.3; see LIGHTER_ROOT)",
        )?;
    }
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during(&format!("mount on {target}"))
}

fn set_map(mount: &OwnedFd, map: BorrowedFd<'_>) -> rustix::io::Result<()> {
    /// struct mount_attr
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    const EMPTY: &CStr = c"";
    let map = u64::try_from(map.as_raw_fd()).unwrap_or_default();
    let attributes = Attributes { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, user_namespace: map };
    // SAFETY: the path ends with zero, the structure is a live mount_attr of the size that is passed, and both
    // descriptors are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    check(result as libc::c_int).map(drop)
}

/// A descriptor that the parent process has left us under `number`.
pub fn inherited(number: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: fcntl takes integers here and fails for what is no descriptor.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })
        .during("take an inherited descriptor")?;
    // SAFETY: it is open, and by contract of the hidden verb nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_the_reserved_ones_and_spread() {
        let bases: std::collections::BTreeSet<_> = (0..100).map(|n| base(&format!("{n:012x}"))).collect();
        assert!(bases.len() > 95, "{}", bases.len());
        assert!(bases.iter().all(|base| (FIRST..=1_879_048_191 - COUNT + 1).contains(base)));
        assert_eq!(base("0123456789ab"), base("0123456789ab"));
    }
}
