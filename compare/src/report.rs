//! The report as data: what `--format json` prints, and what the other formats show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::sample::Figure;
use crate::{Column, Options};

/// Version of the format.
pub const SCHEMA: &str = "lighter.compare.v1";

/// Everything that was measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: String,
    /// Version of lighter.
    pub version: String,
    /// The image.
    pub image: String,
    /// What ran in it; empty: what the image says.
    pub command: Vec<String>,
    /// The host.
    pub host: Host,
    /// Columns that could not run, and why.
    pub missing: Vec<Missing>,
    /// Figures.
    pub rows: Vec<Row>,
    /// Phases of the middle start of each column, in ms.
    pub phases: BTreeMap<Column, Vec<(String, f64)>>,
    /// Attempts on the isolation.
    pub attempts: Vec<Attempt>,
    /// What can be taken elsewhere.
    pub portability: Vec<Portability>,
    /// Something that could not be measured, and why.
    pub notes: Vec<String>,
    /// Why it is not complete, if so.
    pub partial: Option<String>,
    /// In plain words, from the figures above alone.
    pub summary: Vec<String>,
}

/// A column that could not run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Missing {
    /// Which.
    pub column: Column,
    /// Why, and the fix.
    pub reason: String,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Time to start.
    Start,
    /// Disk and memory.
    Size,
    /// A benchmark.
    Speed,
}

/// One thing that was measured, in every column.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// What about.
    pub kind: Kind,
    /// A word for programs.
    pub id: String,
    /// For people.
    pub title: String,
    /// Of every number in it.
    pub unit: String,
    /// More of it is better.
    pub more_is_better: bool,
    /// Emulation of a guest's kernel slows it down, so that figures of VMs on such a host say nothing of others.
    pub distorted: bool,
    /// By column.
    pub figures: BTreeMap<Column, Figure>,
}

impl Row {
    /// How many times as much as the container, of the medians.
    pub fn ratio(&self, column: Column) -> Option<f64> {
        let of = |column| self.figures.get(&column).map(|figure| figure.median);
        Some(of(column)? / of(Column::Container).filter(|median| *median > 0.0)?)
    }
}

/// One attempt.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Attempt {
    /// A word for programs.
    pub id: String,
    /// For people.
    pub title: String,
    /// By column.
    pub found: BTreeMap<Column, Finding>,
}

/// What came of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Finding {
    /// It got through.
    pub open: bool,
    /// What was found.
    pub detail: String,
}

/// One line about what can be taken elsewhere.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Portability {
    /// What.
    pub title: String,
    /// By column.
    pub answers: BTreeMap<Column, String>,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(options: &Options, host: Host) -> Self {
        let busy = host.busy();
        Self {
            schema: SCHEMA.to_owned(),
            version: options.version.clone(),
            image: options.image.clone(),
            command: options.command.clone(),
            host,
            missing: Vec::new(),
            rows: Vec::new(),
            phases: BTreeMap::new(),
            attempts: Vec::new(),
            portability: Vec::new(),
            notes: busy.into_iter().collect(),
            partial: None,
            summary: Vec::new(),
        }
    }

    /// Whether this figure says nothing of hosts with hardware virtualization.
    pub fn is_distorted(&self, row: &Row, column: Column) -> bool {
        row.distorted && column.is_vm() && self.host.emulated == Some(true)
    }

    /// The row `id`.
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// Columns with anything in them.
    pub fn columns(&self) -> Vec<Column> {
        Column::ALL
            .into_iter()
            .filter(|column| {
                self.rows.iter().any(|row| row.figures.contains_key(column))
                    || self.attempts.iter().any(|attempt| attempt.found.contains_key(column))
            })
            .collect()
    }

    /// Columns in which attempts were made.
    pub fn tried(&self) -> Vec<Column> {
        let is_tried =
            |column: &Column| self.attempts.iter().any(|attempt| attempt.found.contains_key(column));
        Column::ALL.into_iter().filter(is_tried).collect()
    }

    /// The first line of every format.
    pub fn headline(&self) -> String {
        match self.host.emulated {
            Some(true) => "KVM EMULATES GUEST KERNELS ON THIS HOST: figures marked * are about a thousand times slower for \
                           VMs here than with hardware virtualization, and say nothing of other hosts"
                .to_owned(),
            Some(false) => "VMs run on hardware virtualization here: no figure is distorted".to_owned(),
            None => "no VM could be measured on this host".to_owned(),
        }
    }

    /// Makes a row of samples by column; those without are left out.
    pub fn add(&mut self, mut row: Row, samples: BTreeMap<Column, Vec<f64>>) {
        row.figures = samples
            .into_iter()
            .filter_map(|(column, samples)| Some((column, Figure::of(samples)?)))
            .collect();
        if !row.figures.is_empty() {
            self.rows.push(row);
        }
    }
}

/// A row without figures.
pub fn row(kind: Kind, (id, title, unit): (&str, &str, &str), more_is_better: bool, distorted: bool) -> Row {
    Row {
        kind,
        id: id.to_owned(),
        title: title.to_owned(),
        unit: unit.to_owned(),
        more_is_better,
        distorted,
        figures: BTreeMap::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with a bit of everything.
    pub(crate) fn example() -> Report {
        let host = Host {
            name: "barge".into(),
            kernel: "6.18".into(),
            cpu: "a <CPU> & more".into(),
            cpus: 2,
            memory: 1 << 34,
            load: 0.0,
            emulated: Some(true),
        };
        let mut report = Report {
            schema: SCHEMA.into(),
            version: "0".into(),
            image: "alpine <script>".into(),
            command: Vec::new(),
            host,
            missing: vec![Missing { column: Column::Process, reason: "it needs root".into() }],
            rows: Vec::new(),
            phases: BTreeMap::from([(Column::Vm, vec![("keeper".into(), 3.0), ("vmm".into(), 9.0)])]),
            attempts: Vec::new(),
            portability: Vec::new(),
            notes: Vec::new(),
            partial: None,
            summary: Vec::new(),
        };
        let samples = |container: f64, vm: f64| {
            BTreeMap::from([
                (Column::Container, vec![container, container * 1.1]),
                (Column::Vm, vec![vm, vm * 1.2]),
            ])
        };
        report.add(row(Kind::Start, ("start", "first byte", "ms"), false, true), samples(100.0, 200.0));
        report.add(row(Kind::Size, ("memory", "memory of one", "MiB"), false, false), samples(2.0, 30.0));
        report.add(row(Kind::Speed, ("integer", "integer", "op/s"), true, false), samples(1e9, 0.99e9));
        report.add(row(Kind::Speed, ("syscall", "system call", "op/s"), true, true), samples(1e7, 1e4));
        let finding = |open| Finding { open, detail: "found".into() };
        for (id, vm) in [("kernel", false), ("raw_sockets", true)] {
            let found = BTreeMap::from([(Column::Container, finding(true)), (Column::Vm, finding(vm))]);
            report.attempts.push(Attempt { id: id.into(), title: id.into(), found });
        }
        report.summary = crate::summary::of(&report);
        report
    }

    #[test]
    fn emulation_is_said_first_and_marks_only_what_it_distorts() {
        let mut report = example();
        assert!(report.headline().contains("EMULATES"));
        let marked = |report: &Report, id: &str, column| report.is_distorted(report.row(id).unwrap(), column);
        assert!(marked(&report, "syscall", Column::Vm) && !marked(&report, "syscall", Column::Container));
        assert!(!marked(&report, "integer", Column::Vm));
        report.host.emulated = Some(false);
        assert!(!marked(&report, "syscall", Column::Vm) && !report.headline().contains("EMULATES"));
    }

    #[test]
    fn it_survives_json_with_every_sample() {
        let report = example();
        let text = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        let samples = |report: &Report| report.row("start").unwrap().figures[&Column::Vm].samples.clone();
        assert_eq!(samples(&back), samples(&report));
        assert_eq!(
            back.row("start").unwrap().ratio(Column::Vm).map(|ratio| (ratio * 10.0).round()),
            Some(21.0)
        );
    }
}
