//! The end of the machine.

use rustix::system::{RebootCommand, reboot};

/// Syncs and ends the VM by a reset, which the VMM takes as its end.
///
/// Not by powering off: a kernel without a power-off handler halts instead, and the VM would stay for ever.
/// Every kernel can reset through the keyboard controller (`reboot=k`). Does not return as PID 1.
pub fn off() -> ! {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    std::process::exit(1);
}
