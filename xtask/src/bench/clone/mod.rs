//! Clones: how quickly one is there, what it costs, how many fit; snapshots of a running guest.
//!
//! Restoring stands beside QEMU's microvm machine, which loads the same guest from a file (`-incoming`). What
//! happens within one process is measured by `vmm/benches/clone.rs`.

mod crowd;
mod footprint;
mod in_process;
mod peer;
mod template;

use std::path::Path;

use anyhow::ensure;

use super::monotonic;
use super::report::{Report, Row};
use super::stats::Samples;
use super::tracefs::KvmTrace;
use crate::{build, deps, kernel, step};

use self::crowd::Crowd;
use self::template::Template;

/// What a crowd is made of.
#[derive(clap::Args)]
pub struct CloneArgs {
    /// Clones that run at once.
    #[arg(long, default_value_t = 200)]
    running: usize,
    /// Clones that are paused at once.
    #[arg(long, default_value_t = 1000)]
    paused: usize,
    /// VMM program to measure, in place of the one of a release build.
    #[arg(long)]
    vmm: Option<std::path::PathBuf>,
}

/// Measures everything.
pub fn run(args: &CloneArgs, runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::KERNEL)?;
    deps::ensure(deps::TEST)?;
    deps::ensure(deps::BENCH)?;
    let kernel = kernel::ensure()?;
    let vmm = match &args.vmm {
        Some(vmm) => vmm.clone(),
        None => build::machine(&build::lighter()?)?,
    };
    let scratch = tempfile::tempdir()?;
    let samples = step::step("clones and snapshots in one process", || {
        in_process::run(&scratch.path().join("template"), 20 * runs)
    })?;
    let template = Template::open(&vmm, &scratch.path().join("template"))?;
    let mut rows = samples;
    rows.extend(step::step("restoring in new processes", || {
        restores(&template, &kernel, scratch.path(), runs)
    })?);
    let mut notes = Vec::new();
    for (count, paused) in [(args.running, false), (args.paused, true)] {
        if count > 0 {
            let what = if paused { "paused clones" } else { "running clones" };
            let crowd = step::step(what, || Crowd::measure(&template, scratch.path(), count, paused))?;
            notes.push(crowd.note());
            rows.extend(crowd.rows());
        }
    }
    Ok(Report { title: "clone", peer: "QEMU microvm".into(), notes, rows })
}

/// Spawn to first KVM_RUN, in turn with the peer.
fn restores(template: &Template, kernel: &Path, scratch: &Path, runs: usize) -> anyhow::Result<Vec<Row>> {
    let trace = KvmTrace::start()?;
    let peer = peer::Saved::make(kernel, scratch)?;
    let (mut ours, mut theirs, mut request) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..=(10 * runs) {
        trace.arm()?;
        let mut clone = template.spawn(&scratch.join("restored"), false)?;
        let started = clone.started()?;
        let entry = trace.wait_for(clone.id(), || {
            ensure!(monotonic() - started.spawned < 10.0, "the clone does not run");
            Ok(())
        })?;
        drop(clone);
        trace.arm()?;
        let theirs_ms = peer.restore(&trace)?;
        if round > 0 {
            ours.push((entry - started.spawned) * 1e3);
            request.push((entry - started.main) * 1e3);
            theirs.push(theirs_ms);
        }
    }
    Ok(vec![
        Row {
            what: "restore in a new process: spawn to first KVM_RUN",
            unit: "ms",
            lighter: ours,
            peer: theirs,
        },
        Row { what: "of it, from `main` on", unit: "ms", lighter: request, peer: Samples::default() },
    ])
}
