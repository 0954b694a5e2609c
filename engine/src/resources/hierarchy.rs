//! Where cgroups are made on this host: version 2, version 1, or both beside each other (hybrid).

use std::io;
use std::path::{Path, PathBuf};

/// Version 2's controllers that we need.
const CONTROLLERS: [&str; 3] = ["cpu", "cpuset", "memory"];

/// The parents of our cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// One directory for all controllers.
    Unified(PathBuf),
    /// A directory for each controller that there is, with its name.
    Split(Vec<(&'static str, PathBuf)>),
}

impl Hierarchy {
    /// What this host has. `mounts` is `/proc/self/mountinfo`, `own` is `/proc/self/cgroup`.
    pub fn find(mounts: &str, own: &str, is_root: bool) -> Option<Self> {
        let mounted = |controller: &str| {
            mounts.lines().find_map(|line| {
                let (fields, rest) = line.split_once(" - ")?;
                let mut rest = rest.split(' ');
                let kind = rest.next()?;
                let options = rest.nth(1)?;
                let fits = match controller {
                    "" => kind == "cgroup2",
                    name => kind == "cgroup" && options.split(',').any(|option| option == name),
                };
                fits.then(|| fields.split(' ').nth(4)).flatten().map(PathBuf::from)
            })
        };
        let split: Vec<_> =
            CONTROLLERS.iter().filter_map(|name| Some((*name, mounted(name)?.join("lighter")))).collect();
        if !split.is_empty() {
            // A split hierarchy is root's.
            return is_root.then_some(Self::Split(split));
        }
        let root = mounted("")?;
        if is_root {
            return Some(Self::Unified(root.join("lighter")));
        }
        // What systemd has delegated to a user: everything below user@UID.service.
        let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let (before, _) = path.split_once(".service")?;
        Some(Self::Unified(root.join(format!("{before}.service")).join("lighter")))
    }

    /// Makes the parents, with our controllers handed down.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Unified(parent) => {
                make(parent)?;
                let above = parent.parent().unwrap_or(parent);
                for directory in [above, parent] {
                    for controller in CONTROLLERS {
                        // One that is handed down already, or that this host lacks: setting a limit will tell.
                        let _ = std::fs::write(
                            directory.join("cgroup.subtree_control"),
                            format!("+{controller}"),
                        );
                    }
                }
                Ok(())
            }
            Self::Split(parents) => parents.iter().try_for_each(|(controller, parent)| {
                make(parent)?;
                if *controller == "cpuset" {
                    inherit_cpuset(parent)?;
                }
                Ok(())
            }),
        }
    }

    /// The directories of the cgroup `name`.
    pub fn directories(&self, name: &str) -> Vec<PathBuf> {
        match self {
            Self::Unified(parent) => vec![parent.join(name)],
            Self::Split(parents) => parents.iter().map(|(_, parent)| parent.join(name)).collect(),
        }
    }

    /// The directory of the cgroup `name` for `controller`.
    pub fn directory(&self, controller: &str, name: &str) -> Option<PathBuf> {
        match self {
            Self::Unified(parent) => Some(parent.join(name)),
            Self::Split(parents) => {
                parents.iter().find(|(other, _)| *other == controller).map(|(_, parent)| parent.join(name))
            }
        }
    }
}

/// Makes a directory unless it is there.
pub fn make(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Version 1: a new cpuset has neither CPUs nor memory nodes, and takes nobody in until it has.
pub fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    let parent = directory.parent().unwrap_or(directory);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read_to_string(directory.join(file))?.trim().is_empty() {
            std::fs::write(directory.join(file), std::fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        31 25 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn both_versions_are_found() {
        let split = Hierarchy::find(V1, "", true).unwrap();
        assert_eq!(split.directory("cpu", "x").unwrap(), Path::new("/sys/fs/cgroup/cpu/lighter/x"));
        assert_eq!((split.directory("cpuset", "x"), split.directories("x").len()), (None, 2));
        assert_eq!(Hierarchy::find(V1, "", false), None);
        let unified = Hierarchy::find(V2, "0::/init.scope\n", true).unwrap();
        assert_eq!(unified, Hierarchy::Unified("/sys/fs/cgroup/lighter".into()));
        let own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n";
        let user = Hierarchy::find(V2, own, false).unwrap();
        let parent = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/lighter";
        assert_eq!(user, Hierarchy::Unified(parent.into()));
        assert_eq!(Hierarchy::find(V2, "0::/\n", false), None);
        assert_eq!(Hierarchy::find("", "", true), None);
    }
}
