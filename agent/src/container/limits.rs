//! Limits on the container that the guest's kernel holds.

use std::ffi::CString;

use agent_protocol::message::GuestLimits;
use rustix::mount::{MountFlags, mount_remount};

use super::dev::NO_EXEC;
use crate::failure::{Context, Failure};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Sets `limits` for every process that is started from now on.
pub fn set(limits: &GuestLimits) -> Result<(), Failure> {
    if limits.shm_bytes > 0 {
        let size = CString::new(format!("size={}", limits.shm_bytes)).unwrap_or_default();
        mount_remount("/dev/shm", NO_EXEC, &size).during("set the size of /dev/shm")?;
    }
    if limits.pids > 0 {
        mount_remount(CGROUPS, NO_EXEC, c"").during("make cgroups writable")?;
        let limited = limit_pids(limits.pids).during("limit the number of processes");
        mount_remount(CGROUPS, NO_EXEC.union(MountFlags::RDONLY), c"").during("make cgroups read-only")?;
        limited?;
    }
    Ok(())
}

/// The agent becomes a member of the cgroup, because its children inherit that; it is not counted as one of theirs.
fn limit_pids(pids: u32) -> std::io::Result<()> {
    std::fs::create_dir("/sys/fs/cgroup/container")?;
    std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids")?;
    std::fs::write("/sys/fs/cgroup/container/pids.max", pids.saturating_add(1).to_string())?;
    std::fs::write("/sys/fs/cgroup/container/cgroup.procs", "0")
}
