//! The control group of a jailed VM.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::JailError;

/// Where one hierarchy is mounted, and which controllers it has; none where it has all (version 2).
struct Hierarchy {
    place: PathBuf,
    controllers: Option<Vec<String>>,
}

/// Makes the group `parent/id` in each hierarchy that a file of `values` belongs to, writes the values and puts this
/// process there.
pub fn enter(version: u8, parent: &Path, id: &str, values: &[(String, String)]) -> Result<(), JailError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| JailError::Cgroup { path, source }
    };
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(failed(Path::new("/proc/self/mounts")))?;
    let hierarchies = hierarchies(&mounts, version);
    let mut groups: Vec<PathBuf> = Vec::new();
    for (file, value) in values {
        let controller = file.split('.').next().unwrap_or_default();
        let missing = || JailError::NoController { version, controller: controller.to_owned() };
        let hierarchy = hierarchies.iter().find(|hierarchy| match &hierarchy.controllers {
            Some(controllers) => controllers.iter().any(|own| own == controller),
            None => true,
        });
        let place = &hierarchy.ok_or_else(missing)?.place;
        let group = place.join(parent).join(id);
        fs::create_dir_all(&group).map_err(failed(&group))?;
        if version == 2 {
            delegate(place, &group, controller).map_err(failed(&group))?;
        } else if controller == "cpuset" {
            inherit_cpuset(place, &group).map_err(failed(&group))?;
        }
        let path = group.join(file);
        fs::write(&path, value).map_err(failed(&path))?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups.iter().try_for_each(|group| {
        let path = group.join("cgroup.procs");
        fs::write(&path, "0").map_err(failed(&path))
    })
}

fn hierarchies(mounts: &str, version: u8) -> Vec<Hierarchy> {
    let of = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
        match (version, kind) {
            (2, "cgroup2") => Some(Hierarchy { place: place.into(), controllers: None }),
            (1, "cgroup") => {
                let controllers = Some(options.split(',').map(str::to_owned).collect());
                Some(Hierarchy { place: place.into(), controllers })
            }
            _ => None,
        }
    };
    mounts.lines().filter_map(of).collect()
}

/// Groups between the root and `group`, without itself.
fn above<'a>(root: &'a Path, group: &'a Path) -> impl Iterator<Item = &'a Path> {
    let mut above: Vec<_> =
        group.ancestors().skip(1).take_while(move |path| path.starts_with(root)).collect();
    above.reverse();
    above.into_iter()
}

/// Version 2: a controller must be handed down from the root.
fn delegate(root: &Path, group: &Path, controller: &str) -> io::Result<()> {
    let text = format!("+{controller}");
    above(root, group).try_for_each(|path| fs::write(path.join("cgroup.subtree_control"), &text))
}

/// Version 1: a new cpuset is empty, and nothing can run in it.
fn inherit_cpuset(root: &Path, group: &Path) -> io::Result<()> {
    let mut before = root.to_owned();
    for path in above(root, group).skip(1).map(Path::to_owned).chain([group.to_owned()]) {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(path.join(file))?.trim().is_empty() {
                fs::write(path.join(file), fs::read_to_string(before.join(file))?.trim())?;
            }
        }
        before = path;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_version_and_controller() {
        let mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n";
        let one = hierarchies(mounts, 1);
        assert_eq!(one.len(), 1);
        assert!(one[0].controllers.as_ref().unwrap().iter().any(|name| name == "cpuacct"));
        let two = hierarchies(mounts, 2);
        assert_eq!((two.len(), two[0].place.as_path()), (1, Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn groups_between_root_and_leaf_come_from_the_top() {
        let (root, leaf) = (Path::new("/c"), Path::new("/c/a/b/id"));
        let found: Vec<_> = above(root, leaf).collect();
        assert_eq!(found, [Path::new("/c"), Path::new("/c/a"), Path::new("/c/a/b")]);
    }
}
