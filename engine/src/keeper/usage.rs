//! What a container has taken of its host, at its end.

use std::path::Path;

use crate::isolation::Isolation;
use crate::stats::processor_time;
use crate::trace::Used;

/// Of the container `id` whose VMM or warden is `process`, while that is there: the machine with all that its guest
/// has touched, or the container's cgroup.
pub fn of(isolation: Isolation, id: &str, process: u32) -> Option<Used> {
    if isolation != Isolation::Vm {
        let peak_memory = warden::cgroup::peak_memory(id);
        return Some(Used { cpu_ns: warden::cgroup::cpu_ns(id)?, peak_memory });
    }
    let proc = Path::new("/proc").join(process.to_string());
    let status = std::fs::read_to_string(proc.join("status")).ok()?;
    Some(Used { cpu_ns: processor_time(&proc).ok()?, peak_memory: peak(&status) })
}

/// `VmHWM` of `/proc/PID/status`, proc_pid_status(5), in bytes.
fn peak(status: &str) -> Option<u64> {
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_peak_that_grows_with_what_it_touches() {
        let of_us = || of(Isolation::Vm, "", std::process::id()).unwrap().peak_memory.unwrap();
        let before = of_us();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(of_us() >= before.max(touched.len() as u64));
        assert_eq!(of(Isolation::Vm, "", u32::MAX), None);
        assert_eq!(peak("VmPeak:\t 9 kB\nVmHWM:\t    12 kB\n"), Some(12 << 10));
    }
}
