//! QEMU's microvm machine with the same kernel, saved to a file and loaded again.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::bench::tracefs::KvmTrace;
use crate::bench::{guest_init, monotonic, qemu};
use crate::kernel;

const MEM_SIZE_MIB: u32 = 256;
const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda ro rootfstype=erofs init=/init";
const PATIENCE: Duration = Duration::from_secs(120);

/// A saved guest.
pub struct Saved {
    kernel: PathBuf,
    disk: PathBuf,
    state: PathBuf,
    cmdline: String,
}

/// A process, killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Saved {
    /// Boots the guest and saves it.
    pub fn make(kernel: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let disk = guest_init::disk(scratch)?;
        let cmdline = format!("{CMDLINE} {}", kernel::host_cmdline()?);
        let saved = Saved { kernel: kernel.to_owned(), disk, state: scratch.join("qemu.state"), cmdline };
        let monitor = scratch.join("qemu.monitor");
        let mut command = saved.command();
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let mut vm = Running(command.spawn().context("cannot start QEMU")?);
        let mut console = BufReader::new(vm.0.stdout.take().context("no stdout")?).lines();
        ensure!(
            console.any(|line| line.is_ok_and(|line| line.contains(guest_init::MARK))),
            "QEMU's guest did not come up"
        );
        let mut monitor = BufReader::new(UnixStream::connect(&monitor)?);
        monitor.get_ref().set_read_timeout(Some(PATIENCE))?;
        let mut ask = |request: &str| -> anyhow::Result<String> {
            writeln!(monitor.get_mut(), "{request}")?;
            loop {
                let mut line = String::new();
                ensure!(monitor.read_line(&mut line)? > 0, "QEMU hung up");
                if line.contains("\"return\"") || line.contains("\"error\"") {
                    return Ok(line);
                }
            }
        };
        ask(r#"{"execute":"qmp_capabilities"}"#)?;
        let target = format!("exec:cat > {}", saved.state.display());
        ask(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"{target}"}}}}"#))?;
        let begin = Instant::now();
        loop {
            let answer = ask(r#"{"execute":"query-migrate"}"#)?;
            if answer.contains("\"completed\"") {
                return Ok(saved);
            }
            if answer.contains("\"failed\"") || begin.elapsed() > PATIENCE {
                bail!("QEMU did not save its guest: {answer}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn command(&self) -> Command {
        qemu::command(&self.kernel, &self.cmdline, &self.disk, MEM_SIZE_MIB)
    }

    /// Milliseconds from the spawn to the first KVM_RUN of the loaded guest.
    pub fn restore(&self, trace: &KvmTrace) -> anyhow::Result<f64> {
        let mut command = self.command();
        command.arg("-incoming").arg(format!("exec:cat {}", self.state.display()));
        let spawned = monotonic();
        let mut vm = Running(command.spawn().context("cannot start QEMU")?);
        let pid = vm.0.id();
        let entry = trace.wait_for(pid, || {
            if vm.0.try_wait()?.is_none() && monotonic() - spawned < PATIENCE.as_secs_f64() {
                return Ok(());
            }
            let _ = vm.0.kill();
            let mut said = String::new();
            vm.0.stderr.take().context("no stderr")?.read_to_string(&mut said)?;
            bail!("QEMU does not go on: {said}")
        })?;
        Ok((entry - spawned) * 1e3)
    }
}
