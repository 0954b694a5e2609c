//! The report for a terminal.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::Column;
use crate::report::{Kind, Report, Row};
use crate::sample::{short, times};

/// Mark of figures that emulation distorts.
const MARK: &str = " *";

/// The whole report as text.
pub fn render(report: &Report) -> String {
    let mut out = report.headline() + "\n\n";
    let host = &report.host;
    let _ = writeln!(
        out,
        "{} on {}: Linux {}, {} × {}, {} GiB; lighter {}",
        report.image,
        host.name,
        host.kernel,
        host.cpus,
        host.cpu,
        host.memory >> 30,
        report.version
    );
    if let Some(why) = &report.partial {
        let _ = writeln!(out, "PARTIAL: {why}");
    }
    for missing in &report.missing {
        let _ = writeln!(out, "no {}: {}", missing.column.title(), missing.reason);
    }
    let columns = report.columns();
    for (kind, heading) in [(Kind::Start, "START"), (Kind::Size, "SIZE"), (Kind::Speed, "SPEED")] {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.kind == kind).collect();
        if !rows.is_empty() {
            let _ = writeln!(
                out,
                "\n{heading}: median ± spread, p99, × container\n{}",
                figures(report, &rows, &columns)
            );
        }
    }
    for (column, phases) in report.phases.iter().filter(|(_, phases)| !phases.is_empty()) {
        let phases: Vec<_> = phases.iter().map(|(name, ms)| format!("{name} {}", short(*ms))).collect();
        let _ = writeln!(out, "phases of the middle start, {}, ms: {}", column.title(), phases.join(", "));
    }
    if !report.attempts.is_empty() {
        let _ = writeln!(out, "\nISOLATION: what got through\n{}", attempts(report, &report.tried()));
    }
    if !report.portability.is_empty() {
        let mut table = table(&columns);
        for line in &report.portability {
            let answers = columns.iter().map(|column| line.answers.get(column).cloned().unwrap_or_default());
            table.add_row([line.title.clone()].into_iter().chain(answers));
        }
        let _ = writeln!(out, "\nPORTABILITY\n{table}");
    }
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    if !report.summary.is_empty() {
        let _ = writeln!(out, "\n{}", report.summary.join("\n"));
    }
    out
}

fn table(columns: &[Column]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([""].into_iter().chain(columns.iter().map(|column| column.title())));
    table
}

fn figures(report: &Report, rows: &[&Row], columns: &[Column]) -> Table {
    let mut table = table(columns);
    for row in rows {
        let cells = columns.iter().map(|column| cell(report, row, *column));
        let title = match row.unit.as_str() {
            "" => row.title.clone(),
            unit => format!("{}, {unit}", row.title),
        };
        table.add_row([title].into_iter().chain(cells));
    }
    table
}

fn cell(report: &Report, row: &Row, column: Column) -> String {
    let Some(figure) = row.figures.get(&column) else { return "-".to_owned() };
    let mut text = short(figure.median);
    if figure.samples.len() > 1 {
        let _ = write!(text, " ± {}, {}", short(figure.spread), short(figure.p99));
    }
    if let Some(ratio) = row.ratio(column).filter(|_| column != Column::Container) {
        let _ = write!(text, " ({})", times(ratio));
    }
    if report.is_distorted(row, column) {
        text.push_str(MARK);
    }
    text
}

fn attempts(report: &Report, columns: &[Column]) -> Table {
    let mut table = table(columns);
    for attempt in &report.attempts {
        let cells = columns.iter().map(|column| match attempt.found.get(column) {
            None => "-".to_owned(),
            Some(finding) => {
                let detail: String = finding.detail.chars().take(40).collect();
                format!("{}: {detail}", if finding.open { "OPEN" } else { "held" })
            }
        });
        table.add_row([attempt.title.clone()].into_iter().chain(cells));
    }
    table
}

#[cfg(test)]
mod tests {
    use crate::report::tests::example;

    #[test]
    fn the_first_line_warns_and_marks_follow() {
        let mut report = example();
        let text = super::render(&report);
        assert!(text.lines().next().is_some_and(|line| line.contains("EMULATES")), "{text}");
        let syscall = text.lines().find(|line| line.contains("system call")).unwrap();
        assert!(
            syscall.contains('*') && text.contains("no process: it needs root") && text.contains("OPEN"),
            "{text}"
        );
        report.host.emulated = Some(false);
        report.summary = crate::summary::of(&report);
        let text = super::render(&report);
        assert!(!text.contains('*'), "{text}");
    }
}
