//! From the command to its first byte of output.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::lighter::{Ran, Run};
use crate::report::{Kind, Report, row};
use crate::{Column, Context, Figure};

/// Starts of a VM that boots: each takes ten seconds and more where its kernel is emulated.
const COLD_RUNS: usize = 3;

/// With `--quick` a boot is measured once, when everything else is.
pub fn measure_cold(context: &Context<'_>, report: &mut Report) {
    if !context.columns.contains(&Column::VmCold) || (context.is_over)() {
        return;
    }
    (context.progress)("start: VM, cold");
    let ran = context.lighter.run(&Run::image(Column::VmCold, context.options));
    if ran.code.is_none_or(|code| (125..=127).contains(&code)) {
        return;
    }
    for (id, took) in [("start", ran.first_byte), ("whole", ran.whole)] {
        let figure = Figure::of(vec![took.as_secs_f64() * 1e3]);
        if let (Some(figure), Some(row)) = (figure, report.rows.iter_mut().find(|row| row.id == id)) {
            row.figures.insert(Column::VmCold, figure);
        }
    }
    report.phases.insert(Column::VmCold, ran.phases);
}

/// Alternates the columns run by run, after one run of each that does not count.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let mut ran: BTreeMap<Column, Vec<Ran>> = BTreeMap::new();
    let mut failed: BTreeMap<Column, String> = BTreeMap::new();
    for number in 0..=context.options.runs {
        for column in context.columns {
            // A boot warms nothing up that the run before it has not.
            let too_many =
                *column == Column::VmCold && (number == 0 || number > COLD_RUNS || context.options.quick);
            if too_many || failed.contains_key(column) || (context.is_over)() {
                continue;
            }
            (context.progress)(&format!("start {number}/{}: {}", context.options.runs, column.title()));
            let once = context.lighter.run(&Run::image(*column, context.options));
            match once.code {
                // Lighter's own failures; a command may end as it likes.
                Some(code) if !(125..=127).contains(&code) => {
                    if number > 0 {
                        ran.entry(*column).or_default().push(once);
                    }
                }
                // The user's end is no failure of the column.
                None if (context.is_over)() => {}
                _ => drop(failed.insert(*column, once.why())),
            }
        }
    }
    for (column, why) in failed {
        report.notes.push(format!("start of the image as {}: {why}", column.title()));
    }
    let of = |take: fn(&Ran) -> Duration| -> BTreeMap<Column, Vec<f64>> {
        ran.iter()
            .map(|(column, ran)| (*column, ran.iter().map(|ran| take(ran).as_secs_f64() * 1e3).collect()))
            .collect()
    };
    report.add(
        row(Kind::Start, ("start", "to the first byte of output", "ms"), false, true),
        of(|ran| ran.first_byte),
    );
    report.add(
        row(Kind::Start, ("whole", "to the end of the command", "ms"), false, true),
        of(|ran| ran.whole),
    );
    for (column, mut ran) in ran {
        ran.sort_by_key(|ran| ran.first_byte);
        let middle = ran.get(ran.len() / 2).map(|ran| ran.phases.clone());
        report.phases.insert(column, middle.unwrap_or_default());
    }
}
