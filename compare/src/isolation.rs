//! What can be seen and touched from inside, by trying.

use std::collections::BTreeMap;

use crate::decoy::Decoys;
use crate::lighter::{Held, Run};
use crate::report::{Attempt, Finding, Report};
use crate::{Column, Context};

/// Name in the probe, and title.
const ATTEMPTS: &[(&str, &str)] = &[
    ("kernel", "the host's kernel is the one that runs it"),
    ("processes", "a process of the host is to be seen"),
    ("kernel_log", "the host's kernel log can be read"),
    ("leaks", "/proc and /sys tell of the host"),
    ("system_calls", "system calls reach the host's kernel"),
    ("device_nodes", "a device node can be made and opened"),
    ("clock", "the host's clock may be set"),
    ("modules", "the host's kernel would load a module"),
    ("mount", "the host's kernel mounts a file system"),
    ("trace", "a process of the host can be traced"),
    ("raw_sockets", "a raw packet socket can be had"),
    ("files", "a file of the host can be read"),
    ("loopback", "the host's loopback interface answers"),
    ("unix_socket", "an abstract Unix socket of the host answers"),
    ("memory_bomb", "it takes more memory than it was given"),
    ("forks", "its processes take places in the host's table"),
    ("disk_filler", "it can fill the host's disk"),
    ("neighbour_files", "another instance's files can be read"),
    ("neighbour_memory", "another instance's memory can be read"),
    ("neighbour_network", "another instance answers on the network"),
];
/// Processes that are started.
const FORKS: &str = "10";
/// What the memory bomb is given, and how many MiB it tries to take.
const MEMORY: (&str, &str) = ("32m", "64");
/// More than any machine's default memory, which its kernel refuses without giving a page.
const QUICK_MEMORY: (&str, &str) = ("its default", "65536");

/// Tries everything once in each column.
pub fn measure(context: &Context<'_>, report: &mut Report) {
    let decoys = match Decoys::make(&context.options.root) {
        Ok(decoys) => decoys,
        Err(error) => return report.notes.push(format!("isolation: the decoys cannot be made: {error}")),
    };
    let mut found: BTreeMap<&str, BTreeMap<Column, Finding>> = BTreeMap::new();
    for column in context.columns.iter().copied().filter(|column| *column != Column::VmCold) {
        if (context.is_over)() {
            break;
        }
        (context.progress)(&format!("isolation: {}", column.title()));
        let neighbour = Neighbour::hold(context, column);
        let mut arguments = vec!["isolation".to_owned()];
        arguments.extend(decoys.arguments());
        match &neighbour {
            Ok(neighbour) => {
                arguments.extend(neighbour.arguments());
                found.entry("forks").or_default().insert(column, neighbour.in_the_hosts_table());
            }
            Err(why) => report.notes.push(format!("a neighbour as {}: {why}", column.title())),
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = context.lighter.run(&Run::probe(column, &arguments));
        if ran.code != Some(0) && !(context.is_over)() {
            report.notes.push(format!("attempts as {}: {}", column.title(), ran.why()));
        }
        for (name, finding) in ran.stdout.lines().filter_map(finding) {
            let known = ATTEMPTS.iter().find(|(known, _)| *known == name);
            // Without a neighbour there is nothing to be found out about it.
            if let Some((name, _)) = known.filter(|_| neighbour.is_ok() || !name.starts_with("neighbour")) {
                found.entry(name).or_default().insert(column, finding);
            }
        }
        drop(neighbour);
        let bomb = memory_bomb(context, column);
        found.entry("memory_bomb").or_default().extend(bomb.map(|finding| (column, finding)));
    }
    for (name, title) in ATTEMPTS {
        if let Some(found) = found.remove(name).filter(|found| !found.is_empty()) {
            report.attempts.push(Attempt { id: (*name).to_owned(), title: (*title).to_owned(), found });
        }
    }
}

/// `NAME open|held DETAIL`
fn finding(line: &str) -> Option<(&str, Finding)> {
    let (name, rest) = line.split_once(' ')?;
    let (open, detail) = rest.split_once(' ').unwrap_or((rest, ""));
    matches!(open, "open" | "held")
        .then(|| (name, Finding { open: open == "open", detail: detail.to_owned() }))
}

/// Takes more than there is. Without limits it is not run: it is open by construction.
fn memory_bomb(context: &Context<'_>, column: Column) -> Option<Finding> {
    if column == Column::Process {
        let detail = "by construction: it has no limits, so it was not tried".to_owned();
        return Some(Finding { open: true, detail });
    }
    // A machine of another size boots first, and each of its pages takes milliseconds where its kernel is emulated; a
    // machine of the usual size is asked for too much then.
    let is_slow = context.options.quick || context.options.emulated == Some(true);
    let quick = column.is_vm() && is_slow;
    let (limit, wanted) = if quick { QUICK_MEMORY } else { MEMORY };
    let mut run = Run::probe(column, &["fill", wanted]);
    if !quick {
        run = run.with(&["-m", limit]);
    }
    let ran = context.lighter.run(&run);
    if (context.is_over)() {
        return None;
    }
    let got = ran.says("filled");
    let end = if ran.says("refused") { "refused" } else { "ended" };
    let detail = match got {
        true => format!("{wanted} MiB were taken of {limit}"),
        false => format!("{end} by the kernel that it runs on: {wanted} MiB of {limit}"),
    };
    Some(Finding { open: got, detail })
}

/// Another instance of the same column, which has processes, a file, memory and a port for the attempts to aim at.
struct Neighbour {
    word: String,
    held: Held,
}

impl Neighbour {
    /// Few processes: each costs a tenth of a second where a guest's kernel is emulated, and the host shall not suffer.
    fn hold(context: &Context<'_>, column: Column) -> Result<Self, String> {
        let word = format!("lighter-neighbour-{}", std::process::id());
        let held = context.lighter.hold(column, &word, &["hold", FORKS, &word])?;
        Ok(Self { word, held })
    }

    /// As arguments of the probe, from `ready KERNEL ADDRESS IP:PORT`.
    fn arguments(&self) -> Vec<String> {
        let mut said = self.held.said.split_whitespace().skip(2);
        let mut next = || said.next().unwrap_or_default();
        let (memory, address) = (next(), next());
        vec![format!("neighbour={}", self.word), format!("memory={memory}"), format!("address={address}")]
    }

    /// Looks for its processes from the host.
    fn in_the_hosts_table(&self) -> Finding {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let is_theirs = |command: &[u8]| {
            let mut words = command.split(|byte| *byte == 0);
            words.next() == Some(b"/probe") && words.any(|word| word == self.word.as_bytes())
        };
        let seen = entries
            .filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|text| is_theirs(&text)))
            .count();
        Finding { open: seen > 0, detail: format!("{seen} processes of {FORKS} and one are in it") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_probe_become_findings_or_nothing() {
        let (name, open) = finding("mount open a file system was mounted").unwrap();
        assert!(name == "mount" && open.open && open.detail == "a file system was mounted");
        assert!(!finding("mount held").unwrap().1.open);
        assert!(finding("mount maybe so").is_none() && finding("nonsense").is_none());
    }
}
