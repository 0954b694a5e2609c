//! `cargo xtask bench`: lighter beside a peer, alternating in one run, as medians and ratios.
//!
//! The development hosts are noisy and shared, so a figure alone says little; the ratio to a peer that ran
//! in turn with it says more. Figures never decide a test.

mod api;
mod block;
mod boot;
mod clone;
mod engine;
mod engine_api;
mod guest_init;
mod images;
mod memory;
mod micro;
mod net;
mod qemu;
mod report;
mod sandbox;
mod ssh;
mod stats;
mod tap;
mod tracefs;
mod warm;

/// What to measure.
#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    suite: Suite,
    /// Measured rounds, after one for warming up.
    #[arg(long, global = true, default_value_t = 5)]
    runs: usize,
    /// Also write the figures as JSON to this file.
    #[arg(long, global = true)]
    json: Option<std::path::PathBuf>,
}

#[derive(clap::Subcommand)]
enum Suite {
    /// Start of a VM: process start to first guest instruction, to PID 1, to the first byte; VMM memory.
    Boot,
    /// The microVM API: first answer, calls, start, memory.
    Api(api::ApiArgs),
    /// Clones and snapshots: time, memory, and how many at once.
    Clone(clone::CloneArgs),
    /// Verbs of a working day: ps, exec, output, cp.
    Engine,
    /// A whole `lighter run`: a clone of a template beside a boot.
    Warm,
    /// Confinement: a VMM in its cage beside one without.
    Sandbox,
    /// Image to root file system, beside `skopeo copy` and `umoci unpack`.
    Images,
    /// Virtio-blk, driven from ring 3: random and sequential reads, beside QEMU's.
    Block,
    /// Virtio-net through a TAP, driven from ring 3: small and large frames, beside QEMU's.
    Net,
}

/// Runs the suite and prints its table.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.runs > 0, "--runs must be at least 1");
    let report = match &args.suite {
        Suite::Boot => boot::run(args.runs)?,
        Suite::Api(api) => api::run(api, args.runs)?,
        Suite::Clone(clone) => clone::run(clone, args.runs)?,
        Suite::Engine => engine::run(args.runs)?,
        Suite::Warm => warm::run(args.runs)?,
        Suite::Sandbox => sandbox::run(args.runs)?,
        Suite::Images => images::run(args.runs)?,
        Suite::Block => block::run(args.runs)?,
        Suite::Net => net::run(args.runs)?,
    };
    print!("{}", report.markdown());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report.json())?)?;
    }
    Ok(())
}

/// CLOCK_MONOTONIC in seconds, the clock of the trace.
fn monotonic() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
