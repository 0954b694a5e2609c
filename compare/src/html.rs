//! The report as one HTML file that needs nothing beside itself: no script, no font, no fetch.

use std::fmt::Write as _;

use crate::plot;
use crate::report::{Kind, Report};
use crate::sample::short;

const STYLE: &str = "
:root { color-scheme: light dark; --fg: #1c1c1c; --bg: #ffffff; --soft: #666; --line: #ccc; --open: #b3261e; --held: #1b6e3c; --mark: #8a5200; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e6e6; --bg: #16181a; --soft: #a0a0a0; --line: #444; --open: #ff8a80; --held: #7fd39b; --mark: #ffb74d; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.first { border: 2px solid var(--line); padding: .6rem 1rem; font-weight: 600; }
.emulated { border-color: var(--mark); color: var(--mark); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
.open { color: var(--open); font-weight: 600; } .held { color: var(--held); } .soft { color: var(--soft); } .mark { color: var(--mark); }
figure { margin: 1.2rem 0; overflow-x: auto; } figcaption { font-weight: 600; }
th:first-child { min-width: 11rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--fg); } svg polyline { stroke: var(--fg); }
@media print {
  :root { --fg: #000; --bg: #fff; --soft: #333; --line: #999; --open: #b3261e; --held: #1b6e3c; --mark: #8a5200; }
  body { font-size: 11pt; margin: 0; max-width: none; } table { font-size: 8.5pt; } svg { max-width: 28rem; }
  h2 { break-after: avoid; } figure, tr, .first { break-inside: avoid; } figure { margin: .6rem 0; }
  details > summary { display: none; } details::details-content { content-visibility: visible; }
}
";

/// The whole report.
pub fn render(report: &Report) -> String {
    let host = &report.host;
    let mut page = String::new();
    let emulated = if host.emulated == Some(true) { " emulated" } else { "" };
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{image}: VM and container</title>\n<style>{STYLE}</style></head>\
         <body>\n<p class=\"first{emulated}\">{headline}</p>\n<h1>{image}: VM and container</h1>\n<p>{name}: Linux {kernel}, \
         {cpus} × {cpu}, {memory} GiB; lighter {version}</p>\n",
        image = escape(&report.image),
        headline = escape(&report.headline()),
        name = escape(&host.name),
        kernel = escape(&host.kernel),
        cpus = host.cpus,
        cpu = escape(&host.cpu),
        memory = host.memory >> 30,
        version = escape(&report.version),
    );
    let mut lines = Vec::new();
    lines.extend(report.partial.iter().map(|why| format!("Partial: {why}.")));
    lines.extend(
        report.missing.iter().map(|missing| format!("No {}: {}.", missing.column.title(), missing.reason)),
    );
    for line in lines {
        let _ = writeln!(page, "<p class=\"mark\">{}</p>", escape(&line));
    }
    if !report.summary.is_empty() {
        page.push_str("<section id=\"summary\"><h2>In words</h2>\n");
        page.extend(report.summary.iter().map(|line| format!("<p>{}</p>\n", escape(line))));
        page.push_str("</section>\n");
    }
    for (kind, title) in [(Kind::Start, "Start"), (Kind::Size, "Size"), (Kind::Speed, "Speed")] {
        plots(&mut page, report, kind, title);
    }
    attempts(&mut page, report);
    portability(&mut page, report);
    for note in &report.notes {
        let _ = writeln!(page, "<p class=\"soft\">Note: {}</p>", escape(note));
    }
    page.push_str("</body></html>\n");
    page
}

fn plots(page: &mut String, report: &Report, kind: Kind, title: &str) {
    let rows: Vec<_> = report.rows.iter().filter(|row| row.kind == kind).collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(page, "<section><h2>{title}</h2>");
    for row in &rows {
        let better = if row.more_is_better { "more is better" } else { "less is better" };
        let _ = writeln!(
            page,
            "<figure id=\"{}\"><figcaption>{} <span class=\"soft\">{better}</span></figcaption>",
            escape(&row.id),
            escape(&row.title)
        );
        page.push_str(&plot::svg(report, row).unwrap_or_default());
        page.push_str("<details><summary>samples</summary><table>");
        for (column, figure) in &row.figures {
            let samples: Vec<_> = figure.samples.iter().map(|sample| short(*sample)).collect();
            let mark = if report.is_distorted(row, *column) { " *" } else { "" };
            let _ = write!(
                page,
                "<tr><th>{}{mark}</th><td>median {} ± {}, p99 {} {}</td><td>{}</td></tr>",
                column.title(),
                short(figure.median),
                short(figure.spread),
                short(figure.p99),
                escape(&row.unit),
                samples.join(", ")
            );
        }
        page.push_str("</table></details></figure>\n");
    }
    if kind == Kind::Start {
        for (column, phases) in report.phases.iter().filter(|(_, phases)| !phases.is_empty()) {
            let phases: Vec<_> =
                phases.iter().map(|(name, ms)| format!("{} {}", escape(name), short(*ms))).collect();
            let _ = writeln!(
                page,
                "<p class=\"soft\">Phases of the middle start, {}, in ms: {}.</p>",
                column.title(),
                phases.join(", ")
            );
        }
    }
    page.push_str("</section>\n");
}

fn attempts(page: &mut String, report: &Report) {
    if report.attempts.is_empty() {
        return;
    }
    let columns = report.tried();
    page.push_str("<section id=\"isolation\"><h2>Isolation, by trying</h2><table><tr><th></th>");
    page.extend(columns.iter().map(|column| format!("<th>{}</th>", column.title())));
    page.push_str("</tr>\n");
    for attempt in &report.attempts {
        let _ = write!(page, "<tr><th>{}</th>", escape(&attempt.title));
        for column in &columns {
            let _ = match attempt.found.get(column) {
                None => write!(page, "<td>-</td>"),
                Some(finding) => {
                    let word = if finding.open { "open" } else { "held" };
                    write!(
                        page,
                        "<td><span class=\"{word}\">{word}</span> <span class=\"soft\">{}</span></td>",
                        escape(&finding.detail)
                    )
                }
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></section>\n");
}

fn portability(page: &mut String, report: &Report) {
    if report.portability.is_empty() {
        return;
    }
    let columns = report.columns();
    page.push_str("<section id=\"portability\"><h2>Portability</h2><table><tr><th></th>");
    page.extend(columns.iter().map(|column| format!("<th>{}</th>", column.title())));
    page.push_str("</tr>\n");
    for line in &report.portability {
        let _ = write!(page, "<tr><th>{}</th>", escape(&line.title));
        for column in &columns {
            let _ = write!(page, "<td>{}</td>", escape(line.answers.get(column).map_or("-", String::as_str)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></section>\n");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use crate::report::tests::example;

    #[test]
    fn it_fetches_nothing_runs_nothing_and_escapes_what_others_wrote() {
        let page = super::render(&example());
        assert!(
            page.contains("alpine &lt;script&gt;") && page.contains("a &lt;CPU&gt; &amp; more"),
            "{page}"
        );
        for bad in ["<script", "http://", "https://", "@import", "url("] {
            assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(bad), "{bad}");
        }
        let first = page.split("<body>").nth(1).unwrap();
        assert!(first.trim_start().starts_with("<p class=\"first emulated\">"), "{first}");
        assert!(page.matches("<svg").count() == 4 && page.contains("median"));
    }
}
