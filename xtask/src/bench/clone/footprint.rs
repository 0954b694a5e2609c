//! Memory and CPU time of processes and of the host.

use anyhow::Context;

/// Ticks a second of the times in `/proc/PID/stat`, on every Linux that x86-64 has.
const TICKS: f64 = 100.0;

/// KiB that process `pid` costs: its share of every page and its page tables.
pub fn process_kib(pid: u32) -> anyhow::Result<f64> {
    let pss = field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?;
    Ok(pss + field(&format!("/proc/{pid}/status"), "VmPTE:")?)
}

/// KiB that the host has left.
pub fn available_kib() -> anyhow::Result<f64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// Seconds of CPU time that process `pid` has used.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let times = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').skip(11).take(2));
    let ticks: f64 = times.context("no times")?.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}

/// The number after `name` in the file `path`.
fn field(path: &str, name: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let number = rest.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse().ok());
    number.with_context(|| format!("{path} has no {name}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_and_this_host_have_memory_and_time() {
        assert!(super::process_kib(std::process::id()).unwrap() > 100.0);
        assert!(super::available_kib().unwrap() > 1000.0);
        assert!(super::cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
