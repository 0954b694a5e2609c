//! Many clones at once: how quickly they come, what each costs, and that each answers.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::footprint;
use super::template::{Clone, Template};
use crate::bench::report::Row;
use crate::bench::stats::Samples;

/// What the clones get to come to rest in.
const REST: Duration = Duration::from_secs(3);
/// How long idle clones are watched for the CPU time that they use.
const WATCHED: Duration = Duration::from_secs(10);

/// Figures of one crowd.
pub struct Crowd {
    count: usize,
    paused: bool,
    created_per_second: f64,
    idle_cpu_percent: f64,
    exec_ms: Samples,
    /// By process and by the host's free memory: idle, then after an exec each.
    process_kib: [Samples; 2],
    host_kib: [f64; 2],
    /// The same after all are gone; the host does other things too.
    left_kib: f64,
}

impl Crowd {
    /// Makes `count` clones, lets each execute a program in its turn, and removes them.
    pub fn measure(template: &Template, scratch: &Path, count: usize, paused: bool) -> anyhow::Result<Self> {
        let directory = scratch.join(if paused { "paused" } else { "running" });
        std::fs::create_dir(&directory)?;
        let before = footprint::available_kib()?;
        let begin = Instant::now();
        let mut clones = Vec::with_capacity(count);
        for number in 0..count {
            let mut clone = template.spawn(&directory.join(number.to_string()), paused)?;
            clone.started()?;
            if paused {
                clone.control("pause")?;
            }
            clones.push(clone);
        }
        let created_per_second = count as f64 / begin.elapsed().as_secs_f64();
        std::thread::sleep(REST);
        let host = || -> anyhow::Result<f64> { Ok((before - footprint::available_kib()?) / count as f64) };
        let process = |clones: &[Clone]| -> anyhow::Result<Samples> {
            clones.iter().map(|clone| footprint::process_kib(clone.id())).collect()
        };
        let cpu = |clones: &[Clone]| -> anyhow::Result<f64> {
            clones.iter().map(|clone| footprint::cpu_seconds(clone.id())).sum()
        };
        let (idle_host, idle) = (host()?, process(&clones)?);
        let cpu_before = cpu(&clones)?;
        std::thread::sleep(WATCHED);
        let idle_cpu_percent = (cpu(&clones)? - cpu_before) / WATCHED.as_secs_f64() / count as f64 * 100.0;
        let mut exec_ms = Samples::default();
        for (number, clone) in clones.iter().enumerate() {
            let begin = Instant::now();
            if paused {
                clone.control("resume")?;
            }
            clone.exec().with_context(|| format!("clone {number} of {count}"))?;
            if paused {
                clone.control("pause")?;
            }
            exec_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let process_kib = [idle, process(&clones)?];
        let host_kib = [idle_host, host()?];
        drop(clones);
        std::thread::sleep(REST);
        let left_kib = host()?;
        Ok(Crowd {
            left_kib,
            count,
            paused,
            created_per_second,
            idle_cpu_percent,
            exec_ms,
            process_kib,
            host_kib,
        })
    }

    /// What is one number and no sample.
    pub fn note(&self) -> String {
        format!(
            "{} {} clones: {:.0} created a second, {:.2} % of a CPU each while idle; memory of the host: {:.0} KiB each, {:.0} KiB after an exec each, {:.0} KiB after their end",
            self.count,
            if self.paused { "paused" } else { "running" },
            self.created_per_second,
            self.idle_cpu_percent,
            self.host_kib[0],
            self.host_kib[1],
            self.left_kib,
        )
    }

    /// What has samples.
    pub fn rows(self) -> Vec<Row> {
        let [idle, used] = self.process_kib;
        let names = if self.paused {
            ["PSS and page tables of a paused clone", "after one exec", "resume, exec and pause in its turn"]
        } else {
            ["PSS and page tables of an idle clone", "after one exec", "exec in its turn"]
        };
        let row = |what, unit, lighter| Row { what, unit, lighter, peer: Samples::default() };
        vec![row(names[0], "KiB", idle), row(names[1], "KiB", used), row(names[2], "ms", self.exec_ms)]
    }
}
