//! The peer: Debian's `qemu-system-x86_64 -M microvm`, trimmed as far as it goes.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::step;

/// QEMU's version line.
pub fn version() -> anyhow::Result<String> {
    let text = step::run_quietly(Command::new("qemu-system-x86_64").arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A microvm with this kernel, command line and one read-only disk; its console is the process's stdout.
pub fn command(kernel: &Path, cmdline: &str, disk: &Path, mem_size_mib: u32) -> Command {
    let mut command = machine(kernel, cmdline, mem_size_mib);
    command.arg("-drive").arg(format!("id=disk,file={},format=raw,if=none,readonly=on", disk.display()));
    command.args(["-device", "virtio-blk-device,drive=disk"]);
    command
}

/// A microvm with this kernel and command line and no device; its console is the process's stdout.
pub fn machine(kernel: &Path, cmdline: &str, mem_size_mib: u32) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,acpi=off,pcie=off",
    ]);
    command.args(["-cpu", "host,-arch-capabilities,-cx16", "-smp", "1", "-m", &mem_size_mib.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).args(["-append", cmdline]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
