//! Runs `vmm/benches/clone.rs` and takes over its samples.

use std::path::Path;

use anyhow::Context;

use crate::bench::report::Row;
use crate::bench::stats::Samples;
use crate::{build, step};

/// Its figures; `keep` gets the template.
pub fn run(keep: &Path, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let mut cargo = build::cargo();
    cargo.args([
        "bench",
        "--quiet",
        "--locked",
        "--profile",
        "vmm",
        "--package",
        "vmm",
        "--bench",
        "clone",
        "--",
    ]);
    cargo.args(["--rounds", &rounds.to_string(), "--keep"]).arg(keep);
    let output = step::run_quietly(&mut cargo)?;
    let json =
        output.lines().find(|line| line.starts_with('{')).context("the benchmark printed no figures")?;
    let figures: serde_json::Value = serde_json::from_str(json)?;
    let row = |what, name: &str, unit| -> anyhow::Result<Row> {
        let values = figures[name].as_array().with_context(|| format!("no figure {name}"))?;
        let lighter = values.iter().filter_map(serde_json::Value::as_f64).collect();
        Ok(Row { what, unit, lighter, peer: Samples::default() })
    };
    Ok(vec![
        row("clone in process: request to first KVM_RUN", "clone_ms", "ms")?,
        row("differential snapshot, one second after the last", "difference_ms", "ms")?,
        row("of it, the guest's pause", "difference_pause_ms", "ms")?,
        row("memory that it wrote", "difference_kib", "KiB")?,
        row("full snapshot of a running guest", "full_ms", "ms")?,
        row("of it, the guest's pause", "full_pause_ms", "ms")?,
    ])
}
