//! The report in plain words, from its figures alone.

use crate::Column;
use crate::report::{Kind, Report, Row};
use crate::sample::short;

/// A difference below this is none.
const SAME: f64 = 0.1;

/// A few sentences; none where there is nothing to compare.
pub fn of(report: &Report) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(cost_of_start(report));
    words.extend(cost_of_memory(report));
    words.extend(cost_of_speed(report));
    words.extend(gain_of_isolation(report));
    words.extend(advice(report));
    words
}

fn medians(report: &Report, id: &str) -> Option<(f64, f64)> {
    let figures = &report.row(id)?.figures;
    Some((figures.get(&Column::Container)?.median, figures.get(&Column::Vm)?.median))
}

fn cost_of_start(report: &Report) -> Option<String> {
    let (container, vm) = medians(report, "start")?;
    let row = report.row("start")?;
    let caution = match report.is_distorted(row, Column::Vm) {
        true => {
            " The VM's time is distorted by the emulation of its kernel: with hardware virtualization it is shorter."
        }
        false => "",
    };
    let (more, less) = (vm / container, container / vm);
    let compared = match more {
        more if (more - 1.0).abs() < SAME => "as long as a container".to_owned(),
        more if more > 1.0 => format!("{} times as long as a container", short(more)),
        _ => format!("{} times less than a container", short(less)),
    };
    Some(format!(
        "For this image a VM takes {} ms to its first byte of output, {compared} ({} ms).{caution}",
        short(vm),
        short(container)
    ))
}

fn cost_of_memory(report: &Report) -> Option<String> {
    let (container, vm) = medians(report, "memory")?;
    let fit = medians(report, "fit").map(|(containers, vms)| {
        format!(
            " By these figures about {} VMs or {} containers fit on this host.",
            short(vms),
            short(containers)
        )
    });
    Some(format!(
        "One VM takes {} MiB of the host's memory, one container {} MiB.{}",
        short(vm),
        short(container),
        fit.unwrap_or_default()
    ))
}

fn cost_of_speed(report: &Report) -> Option<String> {
    let rows: Vec<_> =
        report.rows.iter().filter(|row| row.kind == Kind::Speed && row.ratio(Column::Vm).is_some()).collect();
    let told: Vec<_> = rows.iter().filter(|row| !report.is_distorted(row, Column::Vm)).collect();
    let list = |wanted: Verdict| {
        let found = told.iter().filter(|row| verdict(row) == Some(wanted));
        found
            .map(|row| {
                format!("{} ({} %)", row.title, short(row.ratio(Column::Vm).unwrap_or_default() * 100.0))
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut text = String::new();
    for (label, found) in [
        ("as fast as a container", list(Verdict::Same)),
        ("slower", list(Verdict::Slower)),
        ("faster", list(Verdict::Faster)),
        ("not to be told from a container, as both spread so much,", list(Verdict::Noise)),
    ] {
        if !found.is_empty() {
            text.push_str(&format!(" The VM is {label} in: {found}."));
        }
    }
    let distorted = rows.len() - told.len();
    if distorted > 0 {
        text.push_str(&format!(
            " {distorted} of {} benchmarks are marked *: this host cannot tell what they cost elsewhere.",
            rows.len()
        ));
    }
    (!text.is_empty()).then(|| text.trim_start().to_owned())
}

/// How a VM compares with a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    Slower,
    Faster,
    /// The difference is within what the samples spread.
    Noise,
}

fn verdict(row: &Row) -> Option<Verdict> {
    let (container, vm) = (row.figures.get(&Column::Container)?, row.figures.get(&Column::Vm)?);
    let ratio = row.ratio(Column::Vm)?;
    Some(match (vm.median - container.median).abs() <= container.spread + vm.spread {
        _ if (ratio - 1.0).abs() < SAME => Verdict::Same,
        true => Verdict::Noise,
        false if ratio < 1.0 => Verdict::Slower,
        false => Verdict::Faster,
    })
}

fn gain_of_isolation(report: &Report) -> Option<String> {
    let open = |column| {
        let found = report.attempts.iter().filter_map(move |attempt| attempt.found.get(&column));
        (found.clone().filter(|finding| finding.open).count(), found.count())
    };
    let (container, tried) = open(Column::Container);
    let (vm, tried_in_vm) = open(Column::Vm);
    if tried == 0 || tried_in_vm == 0 {
        return None;
    }
    let only: Vec<_> = report
        .attempts
        .iter()
        .filter(|attempt| {
            let is_open = |column| attempt.found.get(&column).is_some_and(|finding| finding.open);
            is_open(Column::Container) && attempt.found.contains_key(&Column::Vm) && !is_open(Column::Vm)
        })
        .map(|attempt| attempt.title.as_str())
        .collect();
    let buys = match only.is_empty() {
        true => String::new(),
        false => format!(" What only the VM holds: {}.", only.join("; ")),
    };
    Some(format!(
        "Of {tried} attempts on the isolation {container} got through a container and {vm} a VM.{buys}"
    ))
}

fn advice(report: &Report) -> Option<String> {
    let (container, vm) = medians(report, "start")?;
    let gains = gain_of_isolation(report).is_some_and(|text| text.contains("only the VM"));
    let cheap = vm <= container * 2.0;
    Some(match (cheap, gains) {
        (true, true) => "Use a VM: here it costs little and holds more. Use a container where every MiB of memory counts.",
        (false, true) => "Use a VM for what you do not trust, or where another kernel is needed; use a container for what you \
                          trust and start often.",
        (true, false) => "By these figures there is little between the two.",
        (false, false) => "By these figures a container costs less; measure the isolation too before you choose.",
    }
    .to_owned())
}

#[cfg(test)]
mod tests {
    use crate::report::tests::example;

    #[test]
    fn the_words_follow_the_figures() {
        let report = example();
        let text = report.summary.join("\n");
        assert!(text.contains("220 ms") && text.contains("2.10 times as long"), "{text}");
        assert!(
            text.contains("distorted by the emulation")
                && text.contains("as fast as a container in: integer"),
            "{text}"
        );
        assert!(
            text.contains("2 got through a container and 1 a VM")
                && text.contains("only the VM holds: kernel"),
            "{text}"
        );
        assert!(text.contains("Use a VM for what you do not trust"), "{text}");
    }

    #[test]
    fn what_lies_within_the_spread_is_no_difference() {
        let mut report = example();
        let row = report.rows.iter_mut().find(|row| row.id == "integer").unwrap();
        let vm = row.figures.get_mut(&crate::Column::Vm).unwrap();
        (vm.median, vm.spread) = (0.5e9, 1e8);
        let text = |report: &crate::Report| super::of(report).join("\n");
        assert!(text(&report).contains("slower in: integer"), "{}", text(&report));
        let row = report.rows.iter_mut().find(|row| row.id == "integer").unwrap();
        row.figures.get_mut(&crate::Column::Vm).unwrap().spread = 9e8;
        assert!(text(&report).contains("not to be told from a container"), "{}", text(&report));
    }

    #[test]
    fn without_figures_nothing_is_said() {
        let mut report = example();
        report.rows.clear();
        report.attempts.clear();
        assert!(super::of(&report).is_empty());
    }
}
