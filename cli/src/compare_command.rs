//! `lighter compare`: what a VM costs over a container on this host, and what it buys, measured.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use compare::{Column, Group, Options, Report, html, table};
use engine::dirs::Dirs;
use engine::session::signals::Signals;

use crate::options::isolation::IsolationKind;
use crate::{output, times};

/// The whole of it took longer than that on no host; with `--quick`, whose last step may take some seconds to end.
const LIMITS: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(80));
/// Starts of each column.
const RUNS: (usize, usize) = (10, 2);
/// Exit code where the user stopped it: 128 and SIGINT.
const EXIT_STOPPED: u8 = 130;
/// More are of no use.
const MAX_RUNS: usize = 1000;

/// `lighter compare`
#[derive(Args)]
#[command(override_usage = "lighter compare [OPTIONS] IMAGE [-- COMMAND [ARGUMENT]...]")]
pub struct CompareArgs {
    /// Starts of each kind, up to 1000 [default: 10, with --quick 2]
    #[arg(long, value_name = "N")]
    pub runs: Option<usize>,
    /// Measure only this
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    pub only: Vec<GroupName>,
    /// Compare only these
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    pub isolation: Vec<IsolationKind>,
    /// Less exact, within 90 seconds
    #[arg(long)]
    pub quick: bool,
    /// End with what there is after this time [default: 10m, with --quick 80s]
    #[arg(long, value_name = "TIME")]
    pub limit: Option<String>,
    /// How to show it
    #[arg(long, value_enum, default_value_t)]
    pub format: CompareFormat,
    /// Write it to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The image
    pub image: String,
    /// What to run in it [default: what the image says]
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `--format`
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum CompareFormat {
    /// For people
    #[default]
    Table,
    /// For programs, with every sample
    Json,
    /// One page with plots, that needs nothing beside itself
    Html,
}

/// `--only`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GroupName {
    /// From the command to its first byte of output
    Start,
    /// Disk and memory
    Size,
    /// Benchmarks
    Speed,
    /// What can be seen and touched from inside
    Isolation,
    /// What can be taken elsewhere
    Portability,
}

/// Measures and shows; gives the exit code: 0, or 130 where the user stopped it.
pub fn compare(dirs: &Dirs, args: &CompareArgs) -> anyhow::Result<u8> {
    let pick = |(whole, quick)| if args.quick { quick } else { whole };
    let runs = args.runs.unwrap_or(if args.quick { RUNS.1 } else { RUNS.0 });
    ensure!((1..=MAX_RUNS).contains(&runs), "--runs {runs}: write a number from 1 to {MAX_RUNS}");
    let limit = args.limit.as_deref().map(times::duration).transpose().context("--limit")?;
    // Before minutes of measuring are lost to it.
    if let Some(path) = &args.output {
        std::fs::File::create(path)
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    let emulated = vmm::host::emulates_ring0();
    let groups = Group::ALL.into_iter().filter(|group| {
        args.only.is_empty()
            || args.only.iter().any(|name| format!("{name:?}").eq_ignore_ascii_case(group.name()))
    });
    let columns = Column::ALL.into_iter().filter(|column| {
        let kind = match column {
            Column::Process => IsolationKind::Process,
            Column::Container => IsolationKind::Container,
            Column::Vm | Column::VmCold => IsolationKind::Vm,
        };
        args.isolation.is_empty() || args.isolation.contains(&kind)
    });
    let options = Options {
        program: std::env::current_exe().context("cannot find lighter itself")?,
        root: dirs.data.clone(),
        image: args.image.clone(),
        command: args.command.clone(),
        columns: columns.collect(),
        runs,
        only: groups.collect(),
        quick: args.quick,
        limit: limit.unwrap_or(pick(LIMITS)),
        no_vm: emulated.as_ref().err().map(|error| format!("{error}: `lighter doctor` says how to mend it")),
        emulated: emulated.ok(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let stop = stop_on_signals()?;
    let report = compare::run(&options, &stop, &|what| eprintln!("lighter: {what}"))?;
    show(&report, args)?;
    let stopped = stop.load(std::sync::atomic::Ordering::Relaxed);
    Ok(if stopped { EXIT_STOPPED } else { 0 })
}

/// Shows what was measured, as the options say.
pub fn show(report: &Report, args: &CompareArgs) -> anyhow::Result<()> {
    let text = match args.format {
        CompareFormat::Table => table::render(report),
        CompareFormat::Json => serde_json::to_string_pretty(report)? + "\n",
        CompareFormat::Html => html::render(report),
    };
    match &args.output {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write the report to {}", path.display())),
        None => output::print(&text),
    }
}

/// Set by the first SIGINT or SIGTERM: what runs is ended in order, and what was measured is shown.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let signals = Signals::block().context("cannot watch signals")?;
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
            while let Some(signal) = signals.next() {
                if matches!(signal, SIGINT | SIGTERM) {
                    flag.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
    });
    Ok(stop)
}

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
