//! `lighter compare`: what a VM costs over a container on this host, and what it buys, measured.
//!
//! ```text
//! options ─► columns (what this host can run, else why not) ─► start, size, speed, isolation, portability ─► Report
//!                                                                                     table, JSON, HTML ◄──┘
//! ```
//!
//! It runs the `lighter` program itself, as a user would, so that it measures all of it. Every figure keeps its samples.
//! A report is complete at any moment: whoever stops the run early, or a limit of time, gets what there is.

mod column;
mod decoy;
mod host;
pub mod html;
mod isolation;
mod lighter;
mod plot;
mod portability;
pub mod report;
mod sample;
mod size;
mod speed;
mod start;
pub mod summary;
pub mod table;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use column::Column;
pub use report::Report;
pub use sample::Figure;

use lighter::Lighter;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// From the command to its first byte of output and to its end.
    Start,
    /// Disk and memory.
    Size,
    /// Benchmarks.
    Speed,
    /// What can be seen and touched from inside.
    Isolation,
    /// What can be taken elsewhere.
    Portability,
}

impl Group {
    /// All, in the order of the report.
    pub const ALL: [Self; 5] = [Self::Start, Self::Isolation, Self::Size, Self::Speed, Self::Portability];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Size => "size",
            Self::Speed => "speed",
            Self::Isolation => "isolation",
            Self::Portability => "portability",
        }
    }
}

/// What `lighter compare` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `lighter` program.
    pub program: PathBuf,
    /// Its data directory.
    pub root: PathBuf,
    /// The image.
    pub image: String,
    /// What to run in it; empty: what the image says.
    pub command: Vec<String>,
    /// In which ways.
    pub columns: Vec<Column>,
    /// Starts of each column.
    pub runs: usize,
    /// What is measured.
    pub only: Vec<Group>,
    /// Fewer and shorter measurements.
    pub quick: bool,
    /// The end, finished or not.
    pub limit: Duration,
    /// Why no column of VMs can be measured, if so.
    pub no_vm: Option<String>,
    /// This host's KVM emulates guests' kernels; `None` where that is not known.
    pub emulated: Option<bool>,
    /// Version of lighter.
    pub version: String,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A file of its own.
    #[error("cannot {action}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Measures until everything is done, `stop` is set or the limit is reached. `progress` is told what comes next.
pub fn run(options: &Options, stop: &AtomicBool, progress: &dyn Fn(&str)) -> Result<Report, CompareError> {
    let end = Instant::now().checked_add(options.limit);
    let is_over = || stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
    let lighter = Lighter::new(options, end, stop)?;
    let mut report = Report::new(options, host::describe(options.emulated));
    let columns = column::usable(&lighter, options, &mut report, progress);
    for group in options.only.iter().filter(|_| !columns.is_empty()) {
        if is_over() {
            break;
        }
        let context = Context { lighter: &lighter, options, columns: &columns, is_over: &is_over, progress };
        match group {
            Group::Start => start::measure(&context, &mut report),
            Group::Size => size::measure(&context, &mut report),
            Group::Speed => speed::measure(&context, &mut report),
            Group::Isolation => isolation::measure(&context, &mut report),
            Group::Portability => portability::measure(&context, &mut report),
        }
    }
    report.partial = is_over().then(|| match stop.load(Ordering::Relaxed) {
        true => "stopped by the user".to_owned(),
        false => format!("the limit of {} s was reached", options.limit.as_secs()),
    });
    report.summary = summary::of(&report);
    Ok(report)
}

/// What every group of measurements needs.
struct Context<'a> {
    lighter: &'a Lighter<'a>,
    options: &'a Options,
    columns: &'a [Column],
    is_over: &'a dyn Fn() -> bool,
    progress: &'a dyn Fn(&str),
}
