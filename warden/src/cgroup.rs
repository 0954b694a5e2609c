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

/// Of a container's directories the one in which its processes can be stopped: version 1's freezer, or version 2.
fn freezer(directories: &[PathBuf]) -> Option<PathBuf> {
    let split = directories.iter().find(|path| path.join("freezer.state").exists());
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
        for (root, unified) in hierarchies(&mounts) {
            let Some(ours) = own_path(&own, &root, unified) else { continue };
            let theirs = root.join(PARENT).join(id);
            fs::create_dir_all(&theirs).during(&format!("make the cgroup {}", theirs.display()))?;
            if unified {
                hand_down(&root);
            }
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

/// Version 2 counts memory only where each cgroup above has the controller handed down. A host whose version 1 has it
/// counts there.
fn hand_down(root: &Path) {
    for directory in [root.to_owned(), root.join(PARENT)] {
        for controller in ["+cpu", "+memory"] {
            let _ = fs::write(directory.join("cgroup.subtree_control"), controller);
        }
    }
}

/// The path of this process in the hierarchy that is mounted at `root`, by `/proc/self/cgroup`; `None` for those that
/// are of no use here.
fn own_path<'a>(own: &'a str, root: &Path, unified: bool) -> Option<&'a str> {
    let name = root.file_name()?.to_str()?.split(',').next()?;
    let wanted = match name {
        _ if unified => "",
        "cpu" | "memory" | "cpuacct" | "freezer" => name,
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
    cpu_ns_in(&directories(id))
}

fn cpu_ns_in(directories: &[PathBuf]) -> Option<u64> {
    directories.iter().find_map(|directory| {
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
    number_in(&directories(id), &["memory.usage_in_bytes", "memory.current"])
}

/// The most that [`memory`] has been, in bytes. `None` also with version 2 before Linux 5.19.
pub fn peak_memory(id: &str) -> Option<u64> {
    number_in(&directories(id), &["memory.max_usage_in_bytes", "memory.peak"])
}

/// The number in the first of `files` that is there: version 1's name, then version 2's.
fn number_in(directories: &[PathBuf], files: &[&str]) -> Option<u64> {
    let paths = directories.iter().flat_map(|directory| files.iter().map(|file| directory.join(file)));
    paths.into_iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// Stops the processes of `id`, or lets them go on.
pub fn freeze(id: &str, frozen: bool) -> Result<(), String> {
    let directory = freezer(&directories(id)).ok_or("this host has no freezer cgroup")?;
    set_frozen(&directory, frozen)
}

fn set_frozen(directory: &Path, frozen: bool) -> Result<(), String> {
    let (file, text) = match is_unified(directory) {
        true => ("cgroup.freeze", if frozen { "1" } else { "0" }),
        false => ("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
    };
    let path = directory.join(file);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// What the processes of `id` use of their memory limit, or of the host's memory.
pub fn usage(id: &str, host: Usage) -> Usage {
    usage_in(&directories(id), host)
}

fn usage_in(directories: &[PathBuf], host: Usage) -> Usage {
    let Some(used) = number_in(directories, &["memory.usage_in_bytes", "memory.current"]) else {
        return host;
    };
    // Version 2 says `max` where there is none.
    let limit = number_in(directories, &["memory.limit_in_bytes", "memory.max"]);
    let limit = limit.map_or(host.total_kib, |limit| limit >> 10);
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
        let path = |root: &str| own_path(own, Path::new(root), matches!(root, "/sys/fs/cgroup" | "/x"));
        assert_eq!(
            (path("/sys/fs/cgroup/memory"), path("/sys/fs/cgroup/cpu,cpuacct")),
            (Some("/a"), Some("/b"))
        );
        assert_eq!(
            (path("/x"), path("/sys/fs/cgroup"), path("/sys/fs/cgroup/cpuset")),
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

    /// A cgroup as a kernel shows it.
    fn layout(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        let mut directories = std::collections::BTreeSet::new();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            if path.ancestors().nth(2).is_some_and(|parent| parent.ends_with(PARENT)) {
                directories.insert(path.parent().unwrap().to_owned());
            }
        }
        (root, directories.into_iter().collect())
    }

    const V1: &[(&str, &str)] = &[
        ("cpu/lighter/a/cpu.stat", "nr_periods 0\n"),
        ("cpuacct/lighter/a/cpuacct.usage", "7000\n"),
        ("freezer/lighter/a/freezer.state", "THAWED\n"),
        ("memory/lighter/a/memory.usage_in_bytes", "3145728\n"),
        ("memory/lighter/a/memory.max_usage_in_bytes", "4194304\n"),
        ("memory/lighter/a/memory.limit_in_bytes", "8388608\n"),
        ("memory/lighter/a/memory.stat", "cache 0\ntotal_cache 1048576\n"),
    ];
    const V2: &[(&str, &str)] = &[
        ("cgroup.controllers", "cpu memory pids\n"),
        ("cgroup.subtree_control", ""),
        ("lighter/cgroup.subtree_control", ""),
        ("lighter/a/cpu.stat", "usage_usec 7\nuser_usec 5\n"),
        ("lighter/a/cgroup.freeze", "0\n"),
        ("lighter/a/memory.current", "3145728\n"),
        ("lighter/a/memory.peak", "4194304\n"),
        ("lighter/a/memory.max", "8388608\n"),
        ("lighter/a/memory.stat", "anon 2097152\nfile 1048576\n"),
    ];

    #[test]
    fn both_versions_count_and_stop_the_same() {
        let host = Usage { total_kib: 1 << 20, available_kib: 1 << 19, cached_kib: 0 };
        let seen = |files| {
            let (root, directories) = layout(files);
            let numbers = (
                cpu_ns_in(&directories),
                number_in(&directories, &["memory.usage_in_bytes", "memory.current"]),
                number_in(&directories, &["memory.max_usage_in_bytes", "memory.peak"]),
            );
            let usage = usage_in(&directories, host);
            set_frozen(&freezer(&directories).unwrap(), true).unwrap();
            let frozen = ["freezer/lighter/a/freezer.state", "lighter/a/cgroup.freeze"]
                .map(|file| fs::read_to_string(root.path().join(file)).unwrap_or_default());
            (numbers, (usage.total_kib, usage.available_kib, usage.cached_kib), frozen.concat())
        };
        let numbers = (Some(7000), Some(3 << 20), Some(4 << 20));
        assert_eq!(seen(V1), (numbers, (8192, 6144, 1024), "FROZEN".to_owned()));
        assert_eq!(seen(V2), (numbers, (8192, 6144, 1024), "1".to_owned()));
        let (root, directories) =
            layout(&[("lighter/a/memory.max", "max"), ("lighter/a/memory.current", "1048576")]);
        assert_eq!(usage_in(&directories, host).total_kib, host.total_kib);
        hand_down(root.path());
        let (root, _) = layout(V2);
        hand_down(root.path());
        let handed = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(
            (handed("cgroup.subtree_control"), handed("lighter/cgroup.subtree_control")),
            ("+memory".into(), "+memory".into())
        );
    }

    /// On this host's own hierarchy of version 2, if it has one that this user may change.
    #[test]
    fn a_real_cgroup_of_version_2_is_frozen_counted_and_killed() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some((root, _)) = hierarchies(&mounts).into_iter().find(|(_, unified)| *unified) else { return };
        let directory = root.join(format!("lighter-test-{}", std::process::id()));
        if fs::create_dir(&directory).is_err() {
            return;
        }
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        let directories = [directory.clone()];
        while cpu_ns_in(&directories).is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let counted = cpu_ns_in(&directories);
        let events = |wanted: &str| {
            while Instant::now() < end {
                if fs::read_to_string(directory.join("cgroup.events")).unwrap().contains(wanted) {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            false
        };
        let found = freezer(&directories).unwrap();
        set_frozen(&found, true).unwrap();
        let frozen = events("frozen 1");
        kill_all(&directory);
        let status = child.wait().unwrap();
        let empty = events("populated 0");
        fs::remove_dir(&directory).unwrap();
        assert!(
            counted.is_some() && frozen && empty && !status.success(),
            "{counted:?} {frozen} {empty} {status}"
        );
    }
}
