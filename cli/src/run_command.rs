//! `lighter run`: nothing on stdout but what the container writes.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use engine::dirs::Dirs;
use engine::run::{Watcher, run as run_container};
use engine::session::{Outcome, Streams};
use engine::trace::Trace;

use crate::output::{self, Format};
use crate::progress::Bars;
use crate::run_options::RunArgs;

/// Runs the container; gives the exit code.
pub fn run(dirs: &Dirs, args: RunArgs, mut trace: Trace) -> anyhow::Result<u8> {
    let (trace_format, trace_file) = (args.trace, args.trace_file.clone());
    let (interactive, tty) = (args.interactive, args.tty);
    let (options, notices) = args.run_options()?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    ensure!(
        !(interactive && tty) || stdin.is_terminal(),
        "-t wants a terminal as stdin, but it is none: leave -t out"
    );
    notices.iter().for_each(|notice| output::notice(notice));
    let bars = Bars::new();
    let watcher =
        Watcher { progress: &bars, ready: &|| bars.clear(), notice: &|text: &str| output::notice(text) };
    let streams =
        Streams { stdin: interactive.then(|| stdin.as_fd()), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let result = run_container(dirs, &options, streams, &watcher, &mut trace);
    bars.clear();
    let code = match result? {
        Outcome::NotStarted { message, kind } => {
            output::problem(&message);
            Outcome::NotStarted { message, kind }.exit_code()
        }
        outcome => outcome.exit_code(),
    };
    if let Some(format) = trace_format {
        show_trace(&trace, format, trace_file.as_deref())?;
    }
    Ok(code)
}

fn show_trace(trace: &Trace, format: Format, file: Option<&Path>) -> anyhow::Result<()> {
    let report = trace.report();
    let text = match format {
        Format::Json => serde_json::to_string(&report)? + "\n",
        Format::Table => {
            let mut table = output::table(&["PHASE", "MS"]);
            for phase in &report.phases {
                table.add_row([phase.name.to_owned(), format!("{:.2}", phase.ms)]);
            }
            table.add_row(["total".to_owned(), format!("{:.2}", report.total_ms)]);
            output::align_right(&mut table, 1);
            format!("{table}\n")
        }
    };
    match file {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write the trace to {}", path.display())),
        None => std::io::stderr().write_all(text.as_bytes()).context("cannot write the trace to stderr"),
    }
}
