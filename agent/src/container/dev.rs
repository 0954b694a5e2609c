//! `/dev`, `/sys` and the mount points that every container has (OCI runtime specification, "Default
//! Filesystems" and "Default Devices").

use std::ffi::CStr;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::mounts::{directory, mount_at};
use crate::failure::{Context, Failure};

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
}

pub const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

const fn mount(
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
) -> Mount {
    Mount { target, kind, flags, data }
}

const MOUNTS: &[Mount] = &[
    mount("/dev", "tmpfs", MountFlags::NOSUID, Some(c"mode=755,size=65536k")),
    mount(
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ),
    mount("/dev/shm", "tmpfs", NO_EXEC, Some(c"mode=1777,size=65536k")),
    mount("/dev/mqueue", "mqueue", NO_EXEC, None),
    mount("/sys", "sysfs", NO_EXEC.union(MountFlags::RDONLY), None),
    mount("/sys/fs/cgroup", "cgroup2", NO_EXEC.union(MountFlags::RDONLY), None),
];

/// Name, major, minor.
const DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    // Programs with a random number generator of their own watch it; see docs/kernel.md.
    ("/dev/sysgenid", 10, 250),
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Mounts everything but `/proc`, which the main process mounts in its PID namespace. Called inside the
/// container's root.
pub fn mount_all() -> Result<(), Failure> {
    directory("/proc", 0o555)?;
    for Mount { target, kind, flags, data } in MOUNTS {
        if !target.starts_with("/sys/") {
            directory(target, 0o755)?;
        }
        mount_at(kind, target, kind, *flags, *data)?;
    }
    // The kernel starts its init with a mask of 022, and these are for every user.
    let mask = rustix::process::umask(Mode::empty());
    for (path, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, *path, FileType::CharacterDevice, mode, makedev(*major, *minor)).during(path)?;
    }
    rustix::process::umask(mask);
    for (target, link) in LINKS {
        match symlinkat(*target, CWD, *link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).during(link),
        }
    }
    Ok(())
}
