//! How far a kernel build is, from the lines that make prints.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Lines that a whole build prints, to estimate by. A little off does no harm.
const EXPECTED_LINES: usize = 1630;
/// How often a terminal's line is redrawn.
const REDRAW_EVERY: Duration = Duration::from_millis(200);
/// Without a terminal, a line is printed each time this much more is done.
const REPORT_PERCENT: usize = 10;

/// Progress on stderr: one line that is redrawn on a terminal, else a line every tenth.
pub struct Progress {
    title: String,
    lines: usize,
    start: Instant,
    redrawn: Option<Instant>,
    reported_percent: usize,
    terminal: bool,
}

impl Progress {
    /// Announces the work.
    pub fn start(title: String) -> Self {
        eprintln!("==> {title}");
        Self {
            title,
            lines: 0,
            start: Instant::now(),
            redrawn: None,
            reported_percent: 0,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// One line of make's output.
    pub fn line(&mut self, line: &[u8]) {
        if is_step(line) {
            self.lines += 1;
        }
        let (percent, seconds) = (percent(self.lines), self.start.elapsed().as_secs());
        if self.terminal {
            if self.redrawn.is_none_or(|at| at.elapsed() >= REDRAW_EVERY) {
                self.redrawn = Some(Instant::now());
                eprint!("\r    {}: {percent:3} % {seconds} s ", self.title);
                let _ = std::io::stderr().flush();
            }
        } else if percent >= self.reported_percent + REPORT_PERCENT {
            self.reported_percent = percent;
            eprintln!("    {percent} %, {seconds} s");
        }
    }

    /// The work ended.
    pub fn finish(self, success: bool) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        let (word, seconds) = (if success { "done in" } else { "FAILED after" }, self.start.elapsed());
        eprintln!("    {word} {:.1} s", seconds.as_secs_f64());
    }
}

/// Whether make says that it built a file, as in `  CC      init/main.o`.
fn is_step(line: &[u8]) -> bool {
    line.starts_with(b"  ") && line.get(2).is_some_and(u8::is_ascii_uppercase)
}

/// Never 100 before the end.
fn percent(lines: usize) -> usize {
    (lines * 100 / EXPECTED_LINES).min(99)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_built_files_count() {
        assert!(is_step(b"  CC      init/main.o\n"));
        assert!(is_step(b"  HOSTCC  scripts/basic/fixdep\n"));
        assert!(!is_step(b"make[1]: Entering directory\n"));
        assert!(!is_step(b"  \n") && !is_step(b""));
    }

    #[test]
    fn the_estimate_stays_below_the_end() {
        assert_eq!(percent(0), 0);
        assert_eq!(percent(EXPECTED_LINES / 2), 50);
        assert_eq!(percent(EXPECTED_LINES * 3), 99);
    }
}
