//! The first KVM_RUN of a process, from the kernel's own trace: the same yardstick for every VMM.
//!
//! The event is `kvm_fpu`: KVM loads the guest's FPU state right before it enters the guest, on every kind of
//! host. `kvm_entry` is there only with VT-x and AMD-V.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::step;

const TRACEFS: &str = "/sys/kernel/tracing";
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(10);

/// A trace instance of our own, removed on drop, with the event on and times in CLOCK_MONOTONIC.
pub struct KvmTrace {
    instance: PathBuf,
}

impl KvmTrace {
    /// Mounts tracefs where it is not and makes the instance. Needs root.
    pub fn start() -> anyhow::Result<Self> {
        if !Path::new(TRACEFS).join("instances").exists() {
            step::run_quietly(Command::new("mount").args(["-t", "tracefs", "none", TRACEFS]))
                .context("tracefs is needed to see the first KVM_RUN; run the benchmark as root")?;
        }
        let instance = Path::new(TRACEFS).join(format!("instances/lighter-bench-{}", std::process::id()));
        std::fs::create_dir(&instance).with_context(|| format!("cannot make {}", instance.display()))?;
        let trace = KvmTrace { instance };
        trace.write("trace_clock", "mono")?;
        trace.write("options/record-tgid", "1")?;
        trace.write("buffer_size_kb", "256")?;
        // The newest entries would push the first one out of the ring.
        trace.write("options/overwrite", "0")?;
        Ok(trace)
    }

    /// Empties the trace and begins to record.
    pub fn arm(&self) -> anyhow::Result<()> {
        self.write("tracing_on", "0")?;
        self.write("trace", "")?;
        self.write("events/kvm/kvm_fpu/enable", "1")?;
        self.write("tracing_on", "1")
    }

    /// Stops recording and gives the first entry of process `pid` in CLOCK_MONOTONIC seconds.
    pub fn first_entry(&self, pid: u32) -> anyhow::Result<f64> {
        self.write("tracing_on", "0")?;
        self.write("events/kvm/kvm_fpu/enable", "0")?;
        match self.find(pid)? {
            Some(time) => Ok(time),
            None => bail!("the trace has no KVM_RUN of process {pid}"),
        }
    }

    /// Waits for the first entry of process `pid`, which lives; asks `gone` now and then whether it still does.
    pub fn wait_for(&self, pid: u32, mut gone: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        loop {
            if let Some(time) = self.find(pid)? {
                return Ok(time);
            }
            gone()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The first entry of process `pid` so far.
    fn find(&self, pid: u32) -> anyhow::Result<Option<f64>> {
        let trace = std::fs::read_to_string(self.instance.join("trace"))?;
        Ok(trace.lines().find_map(|line| entry_time(line, pid)))
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.instance.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for KvmTrace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.instance);
    }
}

/// Time of a line like `comm-tid (tgid) [cpu] flags 12.345678: kvm_fpu: ...` if `tgid` is `pid`.
fn entry_time(line: &str, pid: u32) -> Option<f64> {
    let (before, _) = line.split_once(": kvm_fpu:")?;
    let open = before.rfind('(')?;
    let tgid = before.get(open + 1..)?.split(')').next()?.trim();
    if tgid.parse::<u32>().ok()? != pid {
        return None;
    }
    before.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_right_process_is_found() {
        let line = "           vcpu0-4711    (   4700) [001] d..1.  1234.567890: kvm_fpu: load";
        assert_eq!(entry_time(line, 4700), Some(1234.56789));
        assert_eq!(entry_time(line, 4711), None);
        assert_eq!(entry_time("# tracer: nop", 4700), None);
    }
}
