//! What works for a container beside its machine: its keeper, the server of its shares, its user-mode network.
//!
//! They are the keeper, which is the machine's parent, and what descends from it, but for the machine itself.

use std::path::{Path, PathBuf};

use super::processor_time;

/// Processes that are looked at: a keeper has three or four (stops a container without a VM, whose processes are
/// never looked at, and whatever else has many).
const MAX_PROCESSES: usize = 64;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// Their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Helpers {
    /// Processor time, in ns.
    pub cpu_ns: u64,
    /// Memory in bytes, shared pages counted in parts; all of it of a process that hides how it shares them.
    pub memory: u64,
}

/// Those of the machine, or warden, whose directory in `/proc` is `machine`.
pub fn of(machine: &Path) -> Helpers {
    let own = machine.file_name().and_then(|name| name.to_str()?.parse().ok());
    let mut processes: Vec<u32> = parent(machine).into_iter().collect();
    let mut next = 0;
    while let Some(&process) = processes.get(next).filter(|_| processes.len() < MAX_PROCESSES) {
        processes.extend(children(process).into_iter().filter(|child| Some(*child) != own));
        next += 1;
    }
    processes.iter().fold(Helpers::default(), |sum, process| {
        let proc = directory(*process);
        Helpers {
            // Whoever has just ended costs nothing any more.
            cpu_ns: sum.cpu_ns + processor_time(&proc).unwrap_or(0),
            memory: sum.memory + memory(&proc).unwrap_or(0),
        }
    })
}

fn directory(process: u32) -> PathBuf {
    Path::new("/proc").join(process.to_string())
}

/// Field `number` of `/proc/PID/stat`, proc_pid_stat(5), from 3 on: what is behind the name.
fn field(proc: &Path, number: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Who started it, unless that is gone and PID 1 has taken its place.
fn parent(proc: &Path) -> Option<u32> {
    field(proc, 4).and_then(|parent| u32::try_from(parent).ok()).filter(|parent| *parent > 1)
}

/// The children of all threads, proc_pid_children(5).
fn children(process: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(directory(process).join("task")).into_iter().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn memory(proc: &Path) -> Option<u64> {
    let rollup = std::fs::read_to_string(proc.join("smaps_rollup")).ok();
    let pss = rollup.and_then(|text| {
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib << 10)
    });
    pss.or_else(|| field(proc, 24).map(|pages| pages.saturating_mul(PAGE)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_parent_and_what_descends_from_it_count_but_not_the_machine() {
        // A keeper with a machine and a helper that has a helper.
        let script = "sleep 100 & machine=$!; sh -c 'sleep 100 & wait' & echo $machine; wait";
        let mut keeper = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(keeper.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        let machine = directory(line.trim().parse().unwrap());
        let with_helper = || children(keeper.id()).into_iter().flat_map(children).count() == 1;
        while !with_helper() {
            std::thread::yield_now();
        }
        let alone = memory(&directory(keeper.id())).unwrap();
        let all = of(&machine);
        assert!(alone > 0 && all.memory > alone, "{alone} {all:?}");
        let processes: Vec<u32> = children(keeper.id());
        let below: Vec<u32> = processes.iter().flat_map(|process| children(*process)).collect();
        for process in [processes, below, vec![keeper.id()]].concat() {
            let _ = Command::new("kill").args(["-9", &process.to_string()]).status();
        }
        keeper.wait().unwrap();
        assert_eq!(of(&directory(keeper.id())), Helpers::default());
    }
}
