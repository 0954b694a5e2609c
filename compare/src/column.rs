//! The columns of a report: process, container, VM from a template, VM booted.

use serde::{Deserialize, Serialize};

use crate::Options;
use crate::lighter::{Lighter, Run};
use crate::report::{Missing, Report};

/// One way to run the image.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// Another root directory, nothing else.
    Process,
    /// A container.
    Container,
    /// A VM cloned from the image's template.
    Vm,
    /// A VM that boots.
    VmCold,
}

impl Column {
    /// All, in the order of the report.
    pub const ALL: [Self; 4] = [Self::Process, Self::Container, Self::Vm, Self::VmCold];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Vm => "VM",
            Self::VmCold => "VM, cold",
        }
    }

    /// Options of `lighter run`.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Process => &["--isolation", "process"],
            Self::Container => &["--isolation", "container"],
            Self::Vm => &["--isolation", "vm"],
            Self::VmCold => &["--isolation", "vm", "--cold"],
        }
    }

    /// Whether it has a kernel of its own.
    pub fn is_vm(self) -> bool {
        matches!(self, Self::Vm | Self::VmCold)
    }
}

/// Tries each column once, which also warms everything up; those that cannot run are noted with the reason.
pub fn usable(
    lighter: &Lighter<'_>,
    options: &Options,
    report: &mut Report,
    progress: &dyn Fn(&str),
) -> Vec<Column> {
    let mut usable = Vec::new();
    for column in options.columns.iter().copied() {
        let why = match (&options.no_vm, column.is_vm()) {
            (Some(why), true) => Some(why.clone()),
            // It is warm when the one before it was, and a boot is long: the first start is measured.
            _ if column == Column::VmCold => None,
            _ => {
                progress(&format!("{}: warming up", column.title()));
                let ran = lighter.run(&Run::probe(column, &["hello"]));
                (!ran.says("ready")).then(|| ran.why())
            }
        };
        match why {
            None => usable.push(column),
            Some(reason) => report.missing.push(Missing { column, reason }),
        }
    }
    usable
}
