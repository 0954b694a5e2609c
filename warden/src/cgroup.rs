//! The cgroups of a container, `lighter/ID` in every hierarchy: found, frozen, emptied, removed.
//!
//! Cgroups are the one thing that outlives a warden that was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::failure::{Context as _, Failure};
use agent_protocol::message::Usage;

/// Parent of the cgroups of all containers, below the root of each hierarchy.
const PARENT: &str = "lighter";
/// What a cgroup may take to become empty after its processes were killed.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);

/// The path of the cgroup of `id`, the same in each hierarchy.
pub fn path(id: &str) -> String {
    format!("/{PARENT}/{id}")
}

/// The directories of the cgroup of `id`, whether they are there or not.
pub fn directories(id: &str) -> Vec<PathBuf> {
    hierarchies(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        .into_iter()
        .map(|(root, _)| root.join(PARENT).join(id))
        .collect()
}

/// Where each hierarchy is mounted, and whether it is of version 2.
fn hierarchies(mountinfo: &str) -> Vec<(PathBuf, bool)> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else { continue };
        let kind = rest.split(' ').next().unwrap_or_default();
        if let Some(path) = fields.split(' ').nth(4).filter(|_| matches!(kind, "cgroup" | "cgroup2")) {
            found.push((PathBuf::from(path), kind == "cgroup2"));
        }
    }
    found
}

/// The directory in which the processes of `id` can be stopped and counted: version 1's freezer, or version 2.
fn freezer(id: &str) -> Option<PathBuf> {
    let directories = directories(id);
    let split = directories.iter().find(|path| path.starts_with("/sys/fs/cgroup/freezer"));
    split.or_else(|| directories.iter().find(|path| is_unified(path))).cloned()
}

fn is_unified(directory: &Path) -> bool {
    directory.ancestors().any(|above| above.join("cgroup.controllers").exists())
}

/// Cgroups without limits, by which processes are found again and what they use is counted.
#[derive(Debug)]
pub struct Track(Vec<Place>);

/// A cgroup of the container, and where the warden is in the same hierarchy.
#[derive(Debug)]
struct Place {
    theirs: PathBuf,
    ours: PathBuf,
}

impl Track {
    /// Makes those of `id`.
    pub fn make(id: &str) -> Result<Self, Failure> {
        let own = fs::read_to_string("/proc/self/cgroup").during("read /proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").during("read /proc/self/mountinfo")?;
        let mut places = Vec::new();
        for (root, _) in hierarchies(&mounts) {
            let Some(ours) = own_path(&own, &root) else { continue };
            let theirs = root.join(PARENT).join(id);
            fs::create_dir_all(&theirs).during(&format!("make the cgroup {}", theirs.display()))?;
            places.push(Place { theirs, ours: root.join(ours.trim_start_matches('/')) });
        }
        match places.is_empty() {
            true => Err(Failure::agent("this host has no cgroups (mount cgroup2 on /sys/fs/cgroup)")),
            false => Ok(Self(places)),
        }
    }

    /// Runs `work` within them: what it starts stays there.
    pub fn within<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let enter = |directory: &Path| {
            let file = directory.join("cgroup.procs");
            fs::write(&file, "0").during(&format!("enter the cgroup {}", directory.display()))
        };
        self.0.iter().try_for_each(|place| enter(&place.theirs))?;
        let result = work();
        self.0.iter().try_for_each(|place| enter(&place.ours))?;
        result
    }
}

/// The path of this process in the hierarchy that is mounted at `root`, by `/proc/self/cgroup`; `None` for those that
/// are of no use here.
fn own_path<'a>(own: &'a str, root: &Path) -> Option<&'a str> {
    let name = root.file_name()?.to_str()?.split(',').next()?;
    let wanted = match name {
        "cpu" | "memory" | "cpuacct" | "freezer" => name,
        "cgroup" | "unified" => "",
        _ => return None,
    };
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|controller| controller == wanted).then_some(path)
    })
}

/// Processor time of the processes of `id`, in ns.
pub fn cpu_ns(id: &str) -> Option<u64> {
    directories(id).iter().find_map(|directory| {
        let split = fs::read_to_string(directory.join("cpuacct.usage")).ok();
        let unified = || {
            let text = fs::read_to_string(directory.join("cpu.stat")).ok()?;
            let micros =
                text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<u64>().ok())?;
            (micros > 0).then_some(micros * 1000)
        };
        split.and_then(|text| text.trim().parse().ok()).or_else(unified)
    })
}

/// Memory of the host that the processes of `id` use, with the files that they read and wrote, in bytes.
pub fn memory(id: &str) -> Option<u64> {
    directories(id).iter().find_map(|directory| {
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok();
        read("memory.usage_in_bytes").or_else(|| read("memory.current"))
    })
}

/// The most that [`memory`] has been, in bytes. `None` also with version 2 before Linux 5.19.
pub fn peak_memory(id: &str) -> Option<u64> {
    directories(id).iter().find_map(|directory| {
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok();
        read("memory.max_usage_in_bytes").or_else(|| read("memory.peak"))
    })
}

/// Stops the processes of `id`, or lets them go on.
pub fn freeze(id: &str, frozen: bool) -> Result<(), String> {
    let directory = freezer(id).ok_or("this host has no freezer cgroup")?;
    let (file, text) = match is_unified(&directory) {
        true => ("cgroup.freeze", if frozen { "1" } else { "0" }),
        false => ("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
    };
    let path = directory.join(file);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// What the processes of `id` use of their memory limit, or of the host's memory.
pub fn usage(id: &str, host: Usage) -> Usage {
    let number = |directory: &PathBuf, file: &str| -> Option<u64> {
        fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
    };
    let directories = directories(id);
    let either = |one: &str, two: &str| {
        directories.iter().find_map(|dir| number(dir, two).or_else(|| number(dir, one)))
    };
    let Some(used) = either("memory.usage_in_bytes", "memory.current") else { return host };
    let limit = either("memory.limit_in_bytes", "memory.max").map_or(host.total_kib, |limit| limit >> 10);
    let stat = directories
        .iter()
        .find_map(|dir| fs::read_to_string(dir.join("memory.stat")).ok())
        .unwrap_or_default();
    let field =
        |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let cached_kib = field("total_cache ").or_else(|| field("file ")).unwrap_or_default() >> 10;
    let total_kib = limit.min(host.total_kib);
    let taken = (used >> 10).saturating_sub(cached_kib);
    Usage { total_kib, available_kib: total_kib.saturating_sub(taken), cached_kib }
}

/// Kills whatever is left of `id`.
pub fn kill(id: &str) {
    directories(id).iter().for_each(|directory| kill_all(directory));
}

/// Kills whatever is left of `id` and removes its cgroups.
pub fn sweep(id: &str) {
    let end = Instant::now() + EMPTY_TIMEOUT;
    for directory in directories(id) {
        while directory.exists() && fs::remove_dir(&directory).is_err() && Instant::now() < end {
            kill_all(&directory);
            std::thread::sleep(Duration::from_millis(2));
        }
        // Fails where there is none, and while there are others.
        let _ = directory.parent().map(fs::remove_dir);
    }
}

fn kill_all(directory: &Path) {
    // Version 2, Linux 5.14: all at once.
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in
        processes.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    // What is frozen dies when it moves again.
    let _ = fs::write(directory.join("freezer.state"), "THAWED");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wardens_own_place_is_found_in_each_hierarchy() {
        let own = "4:memory:/a\n2:cpu,cpuacct:/b\n0::/c\n";
        let path = |root: &str| own_path(own, Path::new(root));
        assert_eq!(
            (path("/sys/fs/cgroup/memory"), path("/sys/fs/cgroup/cpu,cpuacct")),
            (Some("/a"), Some("/b"))
        );
        assert_eq!(
            (path("/sys/fs/cgroup/unified"), path("/sys/fs/cgroup"), path("/sys/fs/cgroup/cpuset")),
            (Some("/c"), Some("/c"), None)
        );
    }

    #[test]
    fn every_hierarchy_is_found() {
        let text = "30 1 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                    31 1 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n32 1 0:28 / /x rw - tmpfs t rw\n";
        let found = hierarchies(text);
        assert_eq!(
            found,
            [("/sys/fs/cgroup/freezer".into(), false), ("/sys/fs/cgroup/unified".into(), true)]
        );
    }
}
