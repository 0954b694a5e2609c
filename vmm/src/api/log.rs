//! The log: lines in Firecracker's form, into a file or FIFO, or to standard output.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use api_server::Fault;
use api_server::wire::{Level, Logger};

use super::{fault, files};
use crate::clock;

/// Bytes that the log takes at most. Stops a client that asks for ever from filling the disk.
const MAX_BYTES: u64 = 64 << 20;

/// The log of one VMM.
#[derive(Debug)]
pub struct Log {
    id: String,
    file: Option<File>,
    level: Level,
    show_level: bool,
    left: u64,
}

impl Log {
    /// The log of the VM `id`, to standard output. Opened anew where that is possible: its lines are appended, as those
    /// of the guest's console are.
    pub fn new(id: &str) -> Self {
        let file = files::open_sink(Path::new("/dev/stdout")).ok();
        Log { id: id.to_owned(), file, level: Level::default(), show_level: false, left: MAX_BYTES }
    }

    /// Changes what `update` has; the rest stays. Lines of other modules than lighter's do not exist, so a filter by
    /// module or the place in the source changes nothing.
    pub fn update(&mut self, update: &Logger) -> Result<(), Fault> {
        if let Some(path) = &update.log_path {
            let file = files::open_sink(Path::new(path));
            self.file = Some(
                file.map_err(|error| fault::refused("Logger error: Failed to open target file", &error))?,
            );
        }
        self.level = update.level.unwrap_or(self.level);
        self.show_level = update.show_level.unwrap_or(self.show_level);
        Ok(())
    }

    /// Writes one line if its level matters enough. A log that cannot be written loses it.
    pub fn line(&mut self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let thread = if self.show_level { format!("main:{}", level.name()) } else { "main".to_owned() };
        let line =
            format!("{} [{}:{thread}] {}\n", timestamp(clock::realtime_ns()), self.id, text.escape_debug());
        let Some(left) = self.left.checked_sub(line.len() as u64) else { return };
        self.left = left;
        let _ = match &mut self.file {
            Some(file) => file.write_all(line.as_bytes()),
            None => io::stdout().write_all(line.as_bytes()),
        };
    }
}

/// UTC, as in RFC 3339, without a zone.
fn timestamp(realtime_ns: u64) -> String {
    let (seconds, nanoseconds) = (realtime_ns / 1_000_000_000, realtime_ns % 1_000_000_000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}")
}

/// Year, month and day of so many days after 1970-01-01: Howard Hinnant's `civil_from_days`, whose years begin in
/// March so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_through_leap_years() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000"),
            (951_782_400, "2000-02-29T00:00:00.000000000"),
            (951_868_800, "2000-03-01T00:00:00.000000000"),
            (4_107_542_399, "2100-02-28T23:59:59.000000000"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000"),
        ] {
            assert_eq!(timestamp(seconds * 1_000_000_000), text);
        }
    }

    #[test]
    fn lines_are_one_line_each_and_go_by_their_level() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::new("vm");
        let log_path = Some(file.path().to_str().unwrap().to_owned());
        log.update(&Logger { log_path, show_level: Some(true), ..Logger::default() }).unwrap();
        log.line(Level::Debug, "silent");
        log.line(Level::Warn, "two\nlines");
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.ends_with("[vm:main:WARN] two\\nlines\n") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn a_log_stops_at_its_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::new("vm");
        let log_path = Some(file.path().to_str().unwrap().to_owned());
        log.update(&Logger { log_path, ..Logger::default() }).unwrap();
        log.left = 10;
        log.line(Level::Error, "more than ten bytes");
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
    }
}
