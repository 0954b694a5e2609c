//! What a container costs its host, and what its guest believes.

mod guest;
mod helpers;
mod memory;
pub mod prometheus;

use std::io;
use std::path::Path;

use serde::Serialize;

pub use guest::GuestUsage;
pub use memory::HostMemory;

use crate::container::record::Record;
use crate::isolation::Isolation;

/// Figures of a running container at one moment; counters count from its start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When these were read, in CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// Processor time of its VMM with all vCPUs, and of what works beside it, in ns.
    pub cpu_ns: u64,
    /// What the guest's kernel says of its memory; `None` where its agent does not answer.
    pub guest: Option<GuestUsage>,
    /// What the host really gives.
    pub host: HostMemory,
    /// Bytes read from and written to the host's storage by its VMM.
    pub block: Counters,
    /// Bytes that reached the guest and that it sent, on the bridges.
    pub net: Counters,
}

/// Bytes in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Read, or received.
    pub input: u64,
    /// Written, or sent.
    pub output: u64,
}

/// The figures of the running container `record`; `None` once it does not run.
pub fn read(record: &Record) -> Option<Stats> {
    let vmm = record.state.vmm?;
    let proc = Path::new("/proc").join(vmm.to_string());
    let id = record.spec.id.as_str();
    let mut host = memory::of(&proc, record).ok()?;
    let mut cpu_ns = processor_time(&proc).ok()?;
    let helpers = helpers::of(&proc);
    if record.spec.isolation != Isolation::Vm {
        // Its processes are the host's, and counted by cgroups.
        let memory = warden::cgroup::memory(id).unwrap_or_default();
        host = HostMemory { guest_pss: memory, guest_private: memory, disk_cache: None, ..host };
        cpu_ns = warden::cgroup::cpu_ns(id).unwrap_or(cpu_ns);
    }
    host.helpers_pss = helpers.memory;
    Some(Stats {
        id: id.to_owned(),
        name: record.name.clone(),
        time_ns: crate::trace::monotonic_ns(),
        cpu_ns: cpu_ns + helpers.cpu_ns,
        guest: guest::usage(record),
        host,
        block: block(&proc).unwrap_or_default(),
        net: net(id),
    })
}

/// Fields 14 and 15 of `/proc/PID/stat`, proc_pid_stat(5): ticks of a hundredth of a second in user and kernel mode.
pub(crate) fn processor_time(proc: &Path) -> io::Result<u64> {
    const NS_PER_TICK: u64 = 10_000_000;
    let stat = std::fs::read_to_string(proc.join("stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(ticks.sum::<u64>().saturating_mul(NS_PER_TICK))
}

/// `read_bytes` and `write_bytes` of `/proc/PID/io`, proc_pid_io(5).
fn block(proc: &Path) -> io::Result<Counters> {
    let text = std::fs::read_to_string(proc.join("io"))?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    Ok(Counters { input: field("read_bytes"), output: field("write_bytes") })
}

/// Of all TAP interfaces of the container: what the host sent there, the guest received.
fn net(id: &str) -> Counters {
    let prefix = format!("lt{id}");
    let interfaces = std::fs::read_dir("/sys/class/net").into_iter().flatten().filter_map(Result::ok);
    let ours = interfaces.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.fold(Counters::default(), |sum, entry| {
        let count = |name: &str| {
            let text = std::fs::read_to_string(entry.path().join("statistics").join(name));
            text.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        Counters { input: sum.input + count("tx_bytes"), output: sum.output + count("rx_bytes") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_used_processor_time() {
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 30 {}
        assert!(processor_time(Path::new("/proc/self")).unwrap() >= 10_000_000);
        assert!(block(Path::new("/proc/self")).is_ok());
        assert_eq!(net("no-such-container"), Counters::default());
    }
}
