//! What the clients' tests share: where the VMM and a guest kernel are.

use std::path::PathBuf;

/// The program, LIGHTER_VMM.
pub fn vmm() -> PathBuf {
    variable("LIGHTER_VMM")
}

/// The jailer, LIGHTER_JAILER.
pub fn jailer() -> PathBuf {
    variable("LIGHTER_JAILER")
}

/// A guest kernel without a disk, LIGHTER_KERNEL: it panics after a while, and so resets its VM.
pub fn kernel() -> PathBuf {
    variable("LIGHTER_KERNEL")
}

/// The command line of such a guest.
pub const BOOT_ARGS: &str = "console=ttyS0 quiet reboot=k panic=-1";

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use `cargo xtask clients`")).into()
}
