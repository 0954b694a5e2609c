//! How results, notices and errors look.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// `--format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs; has a `schema` field
    Json,
}

/// An empty table with these column heads.
pub fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table
}

/// Aligns the numbers in `column`.
pub fn align_right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Prints a table on stdout.
pub fn print_table(table: &Table) -> anyhow::Result<()> {
    let text: String = table.lines().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{}", line.trim_end());
        text
    });
    print(&text)
}

/// Prints JSON on stdout.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints on stdout. A reader that is gone is an error, not a crash.
pub fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}

/// One line that the user should know, on stderr.
pub fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "lighter: note: {text}");
}

/// What the kernel says of a full disk.
const DISK_FULL: &str = "No space left on device";

/// Why something did not work, on stderr.
pub fn problem(text: &str) {
    let _ = writeln!(std::io::stderr(), "lighter: {text}");
}

/// An error with its causes. Each error's text says what was attempted, so the chain reads from the outside in; a
/// cause that repeats what is there already is left out.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            let _ = write!(text, "{}{cause}", if text.is_empty() { "" } else { ": " });
        }
    }
    // Any verb that writes may meet it, and the way out is the same for all.
    if text.contains(DISK_FULL) && !text.contains("free some") {
        text += "; free some (`lighter system df` shows what takes it, `lighter system prune` helps) or use another --root";
    }
    text
}

/// A number of bytes for people: `3.4 MB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1000.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if size < 999.5 {
            break;
        }
        size /= 1000.0;
        unit = next;
    }
    if size < 9.95 { format!("{size:.1} {unit}") } else { format!("{size:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_once_with_what_helps() {
        let full = || anyhow::Error::from(std::io::Error::from_raw_os_error(28));
        let text = error_text(&full().context("cannot write /x"));
        assert!(
            text.starts_with("cannot write /x: No space left") && text.contains("system prune"),
            "{text}"
        );
        assert_eq!(error_text(&full().context("free some")).matches("free some").count(), 1);
    }

    #[test]
    fn sizes_are_short() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (3_449_000, "3.4 MB"),
            (12_600_000, "13 MB"),
            (999_600_000, "1.0 GB"),
            (u64::MAX, "18447 PB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_without_repetition() {
        let error = anyhow::anyhow!("permission denied").context("cannot open /x").context("cannot open /x");
        assert_eq!(error_text(&error), "cannot open /x: permission denied");
    }
}
