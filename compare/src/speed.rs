//! Benchmarks that lighter carries, run inside.

use std::collections::BTreeMap;

use crate::lighter::Run;
use crate::report::{Kind, Report, row};
use crate::{Column, Context};

/// Name in the probe, title, unit, and whether an emulated kernel slows it down.
const BENCHMARKS: &[(&str, &str, &str, bool)] = &[
    ("integer", "integer arithmetic", "op/s", false),
    ("float", "floating point", "op/s", false),
    ("memory_copy", "memory copy, 256 KiB blocks", "MiB/s", false),
    ("syscall", "system call", "op/s", true),
    ("fork_exec", "fork and exec", "op/s", true),
    ("context_switch", "switch of processes", "op/s", true),
    ("page_fault", "page fault", "op/s", true),
    ("file_create", "file: create and remove", "op/s", true),
    ("file_write", "file: write, 64 KiB each", "MiB/s", true),
    ("file_read", "file: read, 64 KiB each", "MiB/s", true),
    ("file_random", "file: random read, 4 KiB", "op/s", true),
    ("file_fsync", "file: write and fsync", "op/s", true),
    ("network_round_trip", "loopback: round trip", "op/s", true),
    ("network_throughput", "loopback: throughput", "MiB/s", true),
];
/// Milliseconds of each benchmark.
const BUDGET: &str = "150";
const QUICK_BUDGET: &str = "40";
/// Runs of the whole suite in each column.
const RUNS: usize = 3;

/// Alternates the columns run by run. A VM that boots computes as any other, so it has no column here.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let mut samples: BTreeMap<&str, BTreeMap<Column, Vec<f64>>> = BTreeMap::new();
    let (budget, runs) = if context.options.quick { (QUICK_BUDGET, 1) } else { (BUDGET, RUNS) };
    for number in 1..=runs {
        for column in context.columns.iter().filter(|column| **column != Column::VmCold) {
            if (context.is_over)() {
                break;
            }
            // Containers have a cgroup each, which counts as much as a single task beside it; so shall a VM have one.
            let group: &[&str] = if column.is_vm() { &["--cpu-shares", "1024"] } else { &[] };
            (context.progress)(&format!("speed {number}/{runs}: {}", column.title()));
            let ran = context.lighter.run(&Run::probe(*column, &["speed", budget]).with(group));
            if ran.code != Some(0) && !(context.is_over)() {
                report.notes.push(format!("benchmarks as {}: {}", column.title(), ran.why()));
            }
            for (name, value) in ran.stdout.lines().filter_map(|line| line.split_once(' ')) {
                match value.parse() {
                    Ok(value) => {
                        samples.entry(known(name)).or_default().entry(*column).or_default().push(value)
                    }
                    Err(_) => report.notes.push(format!("{name} as {}: {value}", column.title())),
                }
            }
        }
    }
    for (name, title, unit, distorted) in BENCHMARKS {
        let samples = samples.remove(name).unwrap_or_default();
        report.add(row(Kind::Speed, (name, title, unit), true, *distorted), samples);
    }
}

/// The name as a constant; what nobody knows is nothing.
fn known(name: &str) -> &'static str {
    BENCHMARKS.iter().find(|(known, ..)| *known == name).map_or("", |(known, ..)| known)
}
