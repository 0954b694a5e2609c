//! One run of the micro-guest under one VMM.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use super::{Bench, MEM_SIZE_MIB, Measured};
use crate::bench::qemu;

/// The VMM process of lighter, as the engine starts it.
pub struct Lighter<'b> {
    pub bench: &'b Bench,
    /// The `disks` of its configuration.
    pub disks: serde_json::Value,
    /// The `net` of its configuration.
    pub net: serde_json::Value,
}

impl Lighter<'_> {
    /// Runs the micro-guest with these words on its command line.
    pub fn run(&self, test: &str) -> anyhow::Result<Measured> {
        let (console, console_writer) = rustix::pipe::pipe()?;
        let config = serde_json::json!({
            "vcpus": 1,
            "mem_size_mib": MEM_SIZE_MIB,
            "kernel": {
                "path": self.bench.program,
                "cmdline": format!("micro.mmio=0xd0000000 micro.stride=4096 {test}"),
            },
            "disks": self.disks,
            "net": self.net,
            "console_log": format!("/proc/self/fd/{}", console_writer.as_raw_fd()),
        });
        let mut file = tempfile::NamedTempFile::new_in(self.bench.scratch())?;
        serde_json::to_writer(&mut file, &config)?;
        file.flush()?;
        let config = inheritable(File::open(file.path())?.into())?;
        let events = inheritable(File::options().write(true).open("/dev/null")?.into())?;
        let console_writer = inheritable(console_writer)?;
        let mut command = Command::new(&self.bench.vmm);
        command.arg("vmm");
        command.args(["--config-fd", &config.as_raw_fd().to_string()]);
        command.args(["--event-fd", &events.as_raw_fd().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = Running(command.spawn().context("cannot start the VMM")?);
        drop(console_writer);
        read_out(child, File::from(console)).context("under lighter")
    }
}

/// QEMU's microvm machine.
pub struct Qemu<'b> {
    pub bench: &'b Bench,
    /// Its devices.
    pub devices: Vec<String>,
}

impl Qemu<'_> {
    /// Runs the micro-guest with these words on its command line.
    pub fn run(&self, test: &str) -> anyhow::Result<Measured> {
        let cmdline = format!("micro.mmio=0xfeb00000 micro.stride=512 {test}");
        let mut command = qemu::machine(&self.bench.program, &cmdline, MEM_SIZE_MIB);
        command.args(["-global", "virtio-mmio.force-legacy=false"]).args(&self.devices);
        command.stderr(Stdio::inherit());
        let mut child = Running(command.spawn().context("cannot start QEMU")?);
        let console = child.0.stdout.take().context("no stdout")?;
        read_out(child, console).context("under QEMU")
    }
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads the guest's console up to its result.
fn read_out(_child: Running, console: impl Read) -> anyhow::Result<Measured> {
    let mut seen = String::new();
    for line in BufReader::new(console).lines() {
        let line = line?;
        let line = line.trim_end();
        if let Some(measured) = Measured::parse(line) {
            return Ok(measured);
        }
        seen.push_str(line);
        if line.contains("micro-guest: failed") {
            break;
        }
    }
    bail!("the micro-guest gave no result; its console said: {seen}")
}

/// Lets children have `fd`.
fn inheritable(fd: OwnedFd) -> anyhow::Result<OwnedFd> {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    Ok(fd)
}
