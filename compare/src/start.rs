//! From the command to its first byte of output and to its end, and what it took of the host meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::lighter::{Ran, Run};
use crate::report::{Kind, Report, row};
use crate::{Column, Context};

/// Starts of a VM that boots: each takes ten seconds and more where its kernel is emulated. With `--quick` one, the last
/// of all starts.
const COLD_RUNS: usize = 3;

/// Name, title, unit, whether emulation distorts it, and where it is taken from.
type Taken = (&'static str, &'static str, &'static str, bool, fn(&Ran) -> Option<f64>);
const TAKEN: &[Taken] = &[
    ("start", "to the first byte of output", "ms", true, |ran| Some(ms(ran.first_byte))),
    ("whole", "to the end of the command", "ms", true, |ran| ran.code.map(|_| ms(ran.whole))),
    ("cpu", "processor time from start to end", "ms", true, |ran| ran.cpu),
    ("peak", "peak memory", "MiB", false, |ran| ran.peak),
];

/// Alternates the columns run by run, after one run of each that does not count.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let mut ran: BTreeMap<Column, Vec<Ran>> = BTreeMap::new();
    let mut failed: BTreeMap<Column, String> = BTreeMap::new();
    let runs = context.options.runs;
    for number in 0..=runs {
        for column in context.columns {
            if !is_due(*column, number, context) || failed.contains_key(column) || (context.is_over)() {
                continue;
            }
            (context.progress)(&format!("start {number}/{runs}: {}", column.title()));
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
                // It has said something, so it has started; it is not tried again.
                None if !once.stdout.is_empty() => {
                    failed.insert(*column, "the command did not end by itself and was ended".to_owned());
                    ran.entry(*column).or_default().push(once);
                }
                _ => drop(failed.insert(*column, once.why())),
            }
        }
    }
    for (column, why) in failed {
        report.notes.push(format!("start of the image as {}: {why}", column.title()));
    }
    for (id, title, unit, distorted, take) in TAKEN {
        let samples = ran.iter().map(|(column, ran)| (*column, ran.iter().filter_map(take).collect()));
        report.add(row(Kind::Start, (id, title, unit), false, *distorted), samples.collect());
    }
    for (column, mut ran) in ran {
        ran.sort_by_key(|ran| ran.first_byte);
        let middle = ran.get(ran.len() / 2).map(|ran| ran.phases.clone());
        report.phases.insert(column, middle.unwrap_or_default());
    }
}

/// A boot warms nothing up that the run before it has not, and is not repeated as often.
fn is_due(column: Column, number: usize, context: &Context<'_>) -> bool {
    match (column, context.options.quick) {
        (Column::VmCold, true) => number == context.options.runs,
        (Column::VmCold, false) => (1..=COLD_RUNS).contains(&number),
        _ => true,
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
