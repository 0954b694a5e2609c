//! What PID 1 needs before it can speak to the host: device nodes and a place to mount things.

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::failure::{Context, Failure};

/// A tmpfs of the agent: mount points and the files that it lays over the container's.
pub const SCRATCH: &str = "/run";

/// Mounts devtmpfs (the kernel may have done it) and the agent's tmpfs on the read-only root.
pub fn prepare() -> Result<(), Failure> {
    match mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, None) {
        Ok(()) | Err(Errno::BUSY) => {}
        other => return other.during("mount /dev (has this kernel CONFIG_DEVTMPFS?)"),
    }
    mount("run", SCRATCH, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .during("mount /run (has this kernel CONFIG_TMPFS?)")?;
    for directory in ["/run/image", "/run/disk", "/run/root"] {
        rustix::fs::mkdirat(CWD, directory, 0o755.into()).during(directory)?;
    }
    Ok(())
}
