//! The phases of a start, from the command line to the first byte of output, without a gap between them.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Ends of phases in CLOCK_MONOTONIC nanoseconds; each phase begins where the one before it ended.
#[derive(Clone, Debug)]
pub struct Trace {
    start_ns: u64,
    ends: Vec<(String, u64)>,
    /// Processor time of others who worked on this start, in ns.
    others_cpu_ns: u64,
    used: Option<Used>,
}

/// What a container took of its host from its start to its end.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Processor time in ns: of a VM, its VMM's with all vCPUs; else of the container's processes.
    pub cpu_ns: u64,
    /// The most memory in bytes: of a VM, its VMM's with all that the guest touched; else what its cgroup was charged
    /// with. `None` where the host does not say (cgroup v2 before Linux 5.19).
    pub peak_memory: Option<u64>,
}

/// A finished trace.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name and version of this format.
    pub schema: &'static str,
    /// In order.
    pub phases: Vec<Phase>,
    /// The sum of the phases.
    pub total_ms: f64,
    /// Processor time of lighter's processes so far, without the VMM.
    pub cpu_ms: f64,
    /// What the container took, where it has ended.
    pub used: Option<Used>,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// `resolve`, `pull`, ...
    pub name: String,
    /// How long it took.
    pub ms: f64,
}

impl Trace {
    /// Begins now.
    pub fn start() -> Self {
        Self { start_ns: monotonic_ns(), ends: Vec::new(), others_cpu_ns: 0, used: None }
    }

    /// The phase `name` ends now.
    pub fn end(&mut self, name: &str) {
        self.end_at(name, monotonic_ns());
    }

    /// The phase `name` ended at `ns`. A time outside what was and what is possible is moved to its edge: some come
    /// from another process or from the guest.
    pub fn end_at(&mut self, name: &str, ns: u64) {
        let begin = self.ends.last().map_or(self.start_ns, |(_, end)| *end);
        self.ends.push((name.to_owned(), ns.min(monotonic_ns()).max(begin)));
    }

    /// Goes on with the phases `ends` of another process, which took `cpu_ns` of processor time.
    pub fn take_over(&mut self, ends: Vec<(String, u64)>, cpu_ns: u64) {
        ends.iter().for_each(|(name, ns)| self.end_at(name, *ns));
        self.others_cpu_ns += cpu_ns;
    }

    /// The container has ended.
    pub fn set_used(&mut self, used: Option<Used>) {
        self.used = used;
    }

    /// What it took.
    pub fn used(&self) -> Option<Used> {
        self.used
    }

    /// Ends of the phases and processor time, for another process to take over.
    pub fn hand_over(&self) -> (Vec<(String, u64)>, u64) {
        (self.ends.clone(), nanoseconds(ClockId::ProcessCPUTime))
    }

    /// The phases so far.
    pub fn report(&self) -> Report {
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let mut begin = self.start_ns;
        let mut phases = Vec::new();
        for (name, end) in &self.ends {
            phases.push(Phase { name: name.clone(), ms: ms(begin, *end) });
            begin = *end;
        }
        let cpu_ms = ms(0, nanoseconds(ClockId::ProcessCPUTime) + self.others_cpu_ns);
        Report {
            schema: "lighter.trace.v1",
            phases,
            total_ms: ms(self.start_ns, begin),
            cpu_ms,
            used: self.used,
        }
    }
}

/// CLOCK_MONOTONIC, the clock of the VMM's events.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_even_where_a_time_is_impossible() {
        let mut trace = Trace::start();
        trace.end("resolve");
        trace.end_at("too early", 0);
        trace.end_at("too late", u64::MAX);
        trace.end("last");
        let report = trace.report();
        assert_eq!(report.phases.len(), 4);
        assert_eq!(report.phases[1].ms, 0.0);
        let sum: f64 = report.phases.iter().map(|phase| phase.ms).sum();
        assert!((sum - report.total_ms).abs() < 1e-6 && report.total_ms < 10_000.0);
    }
}
