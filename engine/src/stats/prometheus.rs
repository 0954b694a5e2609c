//! The figures as Prometheus reads them (text exposition format 0.0.4).

use std::fmt::Write as _;

use super::Stats;

/// A figure: its name, its type, what it is, and how to read it.
type Figure = (&'static str, &'static str, &'static str, fn(&Stats) -> Option<f64>);

const FIGURES: [Figure; 12] = [
    (
        "cpu_seconds_total",
        "counter",
        "Processor time of the VMM with all vCPUs and of its helpers.",
        |stats| Some(stats.cpu_ns as f64 / 1e9),
    ),
    ("guest_memory_bytes", "gauge", "Memory that the guest's kernel has.", |stats| {
        Some(stats.guest?.total as f64)
    }),
    (
        "guest_memory_used_bytes",
        "gauge",
        "Memory that is not available to new processes in the guest.",
        |stats| Some(stats.guest?.used as f64),
    ),
    ("guest_cached_bytes", "gauge", "Files in the guest's page cache.", |stats| {
        Some(stats.guest?.cached as f64)
    }),
    (
        "host_memory_bytes",
        "gauge",
        "Guest memory that the host holds, shared pages counted in parts.",
        |stats| Some(stats.host.guest_pss as f64),
    ),
    ("host_memory_private_bytes", "gauge", "Of it, what no other process shares.", |stats| {
        Some(stats.host.guest_private as f64)
    }),
    ("vmm_memory_bytes", "gauge", "Memory of the VMM itself, shared pages counted in parts.", |stats| {
        Some(stats.host.vmm_pss as f64)
    }),
    ("helpers_memory_bytes", "gauge", "Memory of its keeper, file server and user-mode network.", |stats| {
        Some(stats.host.helpers_pss as f64)
    }),
    ("network_receive_bytes_total", "counter", "Bytes that reached the guest.", |stats| {
        Some(stats.net.input as f64)
    }),
    ("network_transmit_bytes_total", "counter", "Bytes that the guest sent.", |stats| {
        Some(stats.net.output as f64)
    }),
    ("block_read_bytes_total", "counter", "Bytes read from the host's storage.", |stats| {
        Some(stats.block.input as f64)
    }),
    ("block_written_bytes_total", "counter", "Bytes written to the host's storage.", |stats| {
        Some(stats.block.output as f64)
    }),
];

/// All figures of `containers`.
pub fn text(containers: &[&Stats]) -> String {
    let mut text = format!(
        "# HELP lighter_containers Containers that run.\n# TYPE lighter_containers gauge\nlighter_containers {}\n",
        containers.len()
    );
    for (name, kind, help, value) in FIGURES {
        let _ =
            writeln!(text, "# HELP lighter_container_{name} {help}\n# TYPE lighter_container_{name} {kind}");
        for stats in containers {
            if let Some(value) = value(stats) {
                // Names and IDs have nothing in them that would need an escape.
                let (id, container) = (&stats.id, &stats.name);
                let _ =
                    writeln!(text, "lighter_container_{name}{{id=\"{id}\",name=\"{container}\"}} {value}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Counters, HostMemory};

    #[test]
    fn each_figure_has_one_head_and_a_line_for_each_container_that_has_it() {
        let stats = Stats {
            id: "0123456789ab".into(),
            name: "barge".into(),
            time_ns: 1,
            cpu_ns: 1_500_000_000,
            guest: None,
            host: HostMemory { guest_pss: 7, guest_private: 6, vmm_pss: 5, helpers_pss: 4, disk_cache: None },
            block: Counters { input: 1, output: 2 },
            net: Counters { input: 3, output: 4 },
        };
        let text = text(&[&stats, &stats]);
        assert!(text.starts_with("# HELP lighter_containers "), "{text}");
        assert_eq!(text.matches("# TYPE ").count(), 13, "{text}");
        let line = "\nlighter_container_cpu_seconds_total{id=\"0123456789ab\",name=\"barge\"} 1.5\n";
        assert_eq!(text.matches(line).count(), 1, "{text}");
        assert!(
            !text.contains("\nlighter_container_guest_memory_bytes{"),
            "a guest that says nothing has a figure"
        );
    }
}
