//! A whole `lighter run --rm … true`: a clone of the image's template beside a boot of the same.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::report::{Report, Row};
use super::stats::Samples;
use crate::{build, deps, kernel, step};

/// What one run took.
struct Run {
    wall_ms: f64,
    cpu_ms: f64,
}

/// Runs both, in turn.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::KERNEL)?;
    deps::ensure(deps::DEMO)?;
    let kernel = kernel::ensure()?;
    let lighter = build::lighter()?;
    let scratch = tempfile::tempdir()?;
    let image = scratch.path().join("image");
    std::fs::create_dir_all(image.join("bin"))?;
    std::fs::copy("/bin/busybox", image.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", image.join("bin/true"))?;
    let one = |network: &str, cold: bool| run_true(&lighter, &kernel, scratch.path(), network, cold);
    let mut rows = Vec::new();
    let mut cpu = Samples::default();
    step::step("measuring", || {
        for network in ["none", "bridge"] {
            // The first run makes the template.
            one(network, false)?;
            let (mut warm, mut cold) = (Samples::default(), Samples::default());
            for _ in 0..runs {
                let clone = one(network, false)?;
                warm.push(clone.wall_ms);
                cpu.push(clone.cpu_ms);
                cold.push(one(network, true)?.wall_ms);
            }
            let what = match network {
                "none" => "`lighter run --rm --network none IMAGE true`, whole process",
                _ => "`lighter run --rm IMAGE true` with a network, whole process",
            };
            rows.push(Row { what, unit: "ms", lighter: warm, peer: cold });
        }
        Ok(())
    })?;
    rows.push(Row {
        what: "host CPU of lighter itself for a clone",
        unit: "ms",
        lighter: cpu,
        peer: Samples::default(),
    });
    Ok(Report {
        title: "warm",
        peer: "its own --cold".into(),
        notes: vec!["busybox's `true` from a `dir:` image; the template is there".into()],
        rows,
    })
}

fn run_true(lighter: &Path, kernel: &Path, scratch: &Path, network: &str, cold: bool) -> anyhow::Result<Run> {
    let trace = scratch.join("trace.json");
    let mut command = Command::new(lighter);
    command.env("LIGHTER_ROOT", scratch.join("root")).env("LIGHTER_RUN", scratch.join("run"));
    command.args(["run", "--rm", "--network", network, "--trace=json", "--trace-file"]).arg(&trace);
    command.args(cold.then_some("--cold"));
    command.arg("--kernel").arg(kernel).arg(format!("dir:{}", scratch.join("image").display())).arg("true");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().context("cannot start lighter")?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    ensure!(status.success(), "lighter run ended with {status}");
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&trace)?)?;
    let cpu_ms = trace["cpu_ms"].as_f64().context("the trace has no cpu_ms")?;
    Ok(Run { wall_ms, cpu_ms })
}
