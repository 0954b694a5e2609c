//! The end of the machine.

use rustix::system::{RebootCommand, reboot};

/// Syncs and powers off; where the kernel cannot power off, resets, which ends the VM as well.
///
/// Does not return as PID 1. Without CAP_SYS_BOOT, as in a test on the host, the process just ends.
pub fn off() -> ! {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
    std::process::exit(1);
}
