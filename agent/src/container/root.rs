//! The container's root: the image, read-only, and a layer over it that takes every write.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use agent_protocol::message::RootPlan;
use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::mount::{MountFlags, mount_move, mount_remount};
use rustix::process::{chdir, chroot, fchdir};

use super::mounts::{directory, mount_at};
use crate::failure::{Context, Failure};

/// No thread that reads every block bitmap and zeroes inode tables after the mount: the layer is a new sparse
/// file, and on a host that emulates guest ring 0 checksumming its bitmaps costs more than the mount.
pub const DISK_OPTIONS: &CStr = c"noinit_itable,no_prefetch_block_bitmaps";

/// How often a drive without a medium is looked at, and how many times.
const MEDIUM_INTERVAL: Duration = Duration::from_millis(2);
const MEDIUM_LOOKS: u32 = 5000;

/// The image's files, in the agent's own root.
pub const IMAGE: &str = "/run/image";
/// What the container wrote, in the agent's own root.
pub const UPPER: &str = "/run/disk/upper";
/// The writable layer's file system, in the agent's own root.
pub const DISK: &str = "/run/disk";
const ROOT: &str = "/run/root";
const OPTIONS: &CStr = c"lowerdir=/run/image,upperdir=/run/disk/upper,workdir=/run/disk/work";

/// The way back to the agent's own root.
pub struct Outside {
    root: OwnedFd,
    /// The writable layer is a disk, not memory.
    on_disk: bool,
}

/// Mounts the root and makes it the agent's.
///
/// A read-only container gets a layer in memory, so that mount points and `/etc/hosts` can be made before
/// [`make_read_only`].
pub fn enter(plan: &RootPlan) -> Result<Outside, Failure> {
    wait_for_medium(&plan.image_device)?;
    plan.writable_device.iter().try_for_each(|device| wait_for_medium(device))?;
    mount_at(&plan.image_device, IMAGE, "erofs", MountFlags::RDONLY, None)?;
    match &plan.writable_device {
        Some(device) => mount_at(device, DISK, "ext4", MountFlags::NOATIME, Some(DISK_OPTIONS))?,
        None => mount_at("layer", DISK, "tmpfs", MountFlags::empty(), Some(c"mode=755"))?,
    }
    directory(UPPER, 0o755)?;
    directory("/run/disk/work", 0o755)?;
    mount_at("overlay", ROOT, "overlay", MountFlags::empty(), Some(OPTIONS))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, "/", flags, Mode::empty()).during("open the agent's root")?;
    chdir(ROOT).during("enter the container's root")?;
    mount_move(".", "/").during("move the container's root")?;
    chroot(".").during("chroot")?;
    chdir("/").during("chdir")?;
    Ok(Outside { root, on_disk: plan.writable_device.is_some() })
}

/// Waits until a drive has a medium. In a clone of a machine whose drives were empty the kernel hears of them while the
/// agent already runs.
fn wait_for_medium(device: &str) -> Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    for _ in 0..MEDIUM_LOOKS {
        let drive =
            rustix::fs::openat(CWD, device, flags, Mode::empty()).during(&format!("open {device}"))?;
        if rustix::fs::seek(&drive, SeekFrom::End(0)).during(&format!("measure {device}"))? > 0 {
            return Ok(());
        }
        std::thread::sleep(MEDIUM_INTERVAL);
    }
    Err(Failure::agent(format!("the drive {device} stays empty")))
}

/// From now on nobody writes to the container's root.
pub fn make_read_only() -> Result<(), Failure> {
    mount_remount("/", MountFlags::RDONLY, c"").during("make the root read-only")
}

impl Outside {
    /// The agent's own root, which has [`IMAGE`] and [`UPPER`] in it.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Goes back and leaves the disk clean, so that its next mount replays no journal. What fails here has
    /// been synced before and is replayed.
    pub fn close(self) {
        let back = fchdir(&self.root).and_then(|()| chroot("."));
        if self.on_disk && back.is_ok() {
            let _ = mount_remount(DISK, MountFlags::RDONLY, c"");
        }
    }
}
