//! One line per step on stderr: what runs, that it still runs, how long it took.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How often a step that takes long says so where stderr is no terminal.
const REPORT_EVERY: Duration = Duration::from_secs(20);

/// Runs `work` under the heading `title`; a ticker shows elapsed time until it ends.
pub fn step<T>(title: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    eprintln!("==> {title}");
    let (done, ticker) = mpsc::channel::<()>();
    let name = title.to_owned();
    let thread = std::thread::spawn(move || {
        let every = if terminal { Duration::from_secs(1) } else { REPORT_EVERY };
        while let Err(mpsc::RecvTimeoutError::Timeout) = ticker.recv_timeout(every) {
            let seconds = start.elapsed().as_secs();
            if terminal {
                eprint!("\r    {name}: {seconds} s ");
                let _ = std::io::stderr().flush();
            } else {
                eprintln!("    {name}: {seconds} s");
            }
        }
        if terminal {
            eprint!("\r\x1b[K");
        }
    });
    let result = work();
    drop(done);
    let _ = thread.join();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("    done in {seconds:.1} s"),
        Err(_) => eprintln!("    FAILED after {seconds:.1} s"),
    }
    result
}

/// Runs a command to its end with its output shown; an unsuccessful exit is an error that names it.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Like [`run`], but shows the command's output only where it fails.
pub fn run_quietly(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
