//! A benchmark's result: one row a figure, lighter beside its peer.

use std::fmt::Write;

use super::stats::Samples;

/// One figure.
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// Unit of the samples.
    pub unit: &'static str,
    /// Lighter's samples.
    pub lighter: Samples,
    /// The peer's samples; empty where the peer has no such figure.
    pub peer: Samples,
}

/// All figures of one run.
pub struct Report {
    /// Name of the suite.
    pub title: &'static str,
    /// Name of the peer.
    pub peer: String,
    /// Host, versions and whatever a reader must know.
    pub notes: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Report {
    /// As a Markdown table.
    pub fn markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n", self.title);
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        let _ = writeln!(text, "\n| what | lighter p50 | p99 | {} p50 | p99 | ratio |", self.peer);
        text.push_str("| --- | --: | --: | --: | --: | --: |\n");
        for row in &self.rows {
            let cell =
                |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.2} {}", row.unit));
            let ratio = row.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.3}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {ratio} |",
                row.what,
                cell(row.lighter.median()),
                cell(row.lighter.p99()),
                cell(row.peer.median()),
                cell(row.peer.p99()),
            );
        }
        text
    }

    /// As JSON with a schema name.
    pub fn json(&self) -> serde_json::Value {
        let figures = |samples: &Samples| serde_json::json!({"p50": samples.median(), "p99": samples.p99(), "runs": samples.len()});
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({"what": row.what, "unit": row.unit, "lighter": figures(&row.lighter),
                    "peer": figures(&row.peer), "ratio": row.ratio()})
            })
            .collect();
        serde_json::json!({"schema": "lighter.bench.v1", "suite": self.title, "peer": self.peer, "notes": self.notes, "rows": rows})
    }
}

impl Row {
    /// Lighter's median over the peer's; less is better for every figure here.
    fn ratio(&self) -> Option<f64> {
        Some(self.lighter.median()? / self.peer.median()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_medians_and_the_ratio_and_leaves_out_what_the_peer_has_not() {
        let rows = vec![
            Row {
                what: "start",
                unit: "ms",
                lighter: [1.0, 2.0, 3.0].into_iter().collect(),
                peer: [20.0].into_iter().collect(),
            },
            Row {
                what: "only ours",
                unit: "ms",
                lighter: [5.0].into_iter().collect(),
                peer: Samples::default(),
            },
        ];
        let report = Report { title: "boot", peer: "qemu".into(), notes: vec!["a host".into()], rows };
        let text = report.markdown();
        assert!(text.contains("| start | 2.00 ms | 3.00 ms | 20.00 ms | 20.00 ms | 0.100 |"), "{text}");
        assert!(text.contains("| only ours | 5.00 ms | 5.00 ms | – | – | – |"), "{text}");
        assert_eq!(report.json()["rows"][0]["ratio"], 0.1);
    }
}
