//! The cgroup of one container's VMM process.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::hierarchy::{Hierarchy, inherit_cpuset, make};
use super::{ResourceSpec, VMM_MEMORY};
use crate::container::id::ContainerId;

/// What a cgroup may take to become empty after its last process was killed.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a limit is not held.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has no place for it.
    #[error(
        "limits on CPU and memory of the host need a cgroup, and this user may make none here: run as root, or under \
         systemd with delegation (loginctl enable-linger; Delegate=yes)"
    )]
    NoPlace,
    /// The kernel refuses it.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A cgroup, removed on drop. Its processes must have ended by then.
#[derive(Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    name: String,
}

impl Cgroup {
    /// Makes the cgroup of container `id` with the limits of `spec`.
    pub fn create(id: &ContainerId, spec: &ResourceSpec) -> Result<Self, CgroupError> {
        let hierarchy = here().ok_or(CgroupError::NoPlace)?;
        let cgroup = Self { hierarchy, name: id.as_str().to_owned() };
        for path in cgroup.hierarchy.directories(&cgroup.name) {
            let made = cgroup.make(&path);
            made.map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => CgroupError::NoPlace,
                _ => CgroupError::File { action: "make the cgroup", path, source },
            })?;
        }
        cgroup.apply(spec)?;
        Ok(cgroup)
    }

    /// Makes one directory. Whoever removes the last other cgroup removes its parent, too, maybe just now.
    fn make(&self, path: &Path) -> io::Result<()> {
        for _ in 0..10 {
            self.hierarchy.prepare()?;
            match make(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Changes the limits of the running container `id`, whose VMM is `vmm`; its keeper removes the cgroup.
    pub fn change(id: &ContainerId, spec: &ResourceSpec, vmm: u32) -> Result<(), CgroupError> {
        let cgroup = std::mem::ManuallyDrop::new(Self::create(id, spec)?);
        cgroup.add(vmm)
    }

    /// Takes a process with all its threads in.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.hierarchy.directories(&self.name).into_iter().try_for_each(|directory| {
            let path = directory.join("cgroup.procs");
            std::fs::write(&path, pid.to_string()).map_err(|source| CgroupError::File {
                action: "put the VMM into",
                path,
                source,
            })
        })
    }

    fn apply(&self, spec: &ResourceSpec) -> Result<(), CgroupError> {
        let unified = matches!(self.hierarchy, Hierarchy::Unified(_));
        if let Some(directory) = self.hierarchy.directory("cpuset", &self.name).filter(|_| !unified) {
            inherit_cpuset(&directory).map_err(|source| CgroupError::File {
                action: "set up the cpuset",
                path: directory,
                source,
            })?;
        }
        if let Some(quota) = spec.quota {
            if unified {
                self.write("cpu", "cpu.max", &format!("{} {}", quota.quota_us, quota.period_us))?;
            } else {
                self.write("cpu", "cpu.cfs_period_us", &quota.period_us.to_string())?;
                self.write("cpu", "cpu.cfs_quota_us", &quota.quota_us.to_string())?;
            }
        }
        if let Some(shares) = spec.shares {
            if unified {
                self.write("cpu", "cpu.weight", &weight(shares).to_string())?;
            } else {
                self.write("cpu", "cpu.shares", &shares.to_string())?;
            }
        }
        if let Some(cpuset) = &spec.cpuset {
            self.write("cpuset", "cpuset.cpus", cpuset)?;
        }
        if let Some(memory) = spec.memory {
            let bytes = memory.saturating_add(VMM_MEMORY).to_string();
            self.write("memory", if unified { "memory.max" } else { "memory.limit_in_bytes" }, &bytes)?;
        }
        Ok(())
    }

    fn write(&self, controller: &str, file: &str, text: &str) -> Result<(), CgroupError> {
        let directory = self.hierarchy.directory(controller, &self.name).ok_or(CgroupError::NoPlace)?;
        let path = directory.join(file);
        std::fs::write(&path, text).map_err(|source| CgroupError::File {
            action: "set the limit",
            path,
            source,
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + EMPTY_TIMEOUT;
        for directory in self.hierarchy.directories(&self.name) {
            // A process that was just killed may be in it for a moment; what stays is removed by a sweep.
            while std::fs::remove_dir(&directory)
                .is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
                && Instant::now() < end
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            remove_parent(&directory);
        }
    }
}

/// Removes the cgroup that a killed keeper of `id` left.
pub fn sweep(id: &str) {
    for directory in here().into_iter().flat_map(|hierarchy| hierarchy.directories(id)) {
        if std::fs::remove_dir(&directory).is_ok() {
            remove_parent(&directory);
        }
    }
}

/// Removes our parent of all cgroups once there are none.
fn remove_parent(directory: &Path) {
    let _ = directory.parent().map(std::fs::remove_dir);
}

fn here() -> Option<Hierarchy> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    Hierarchy::find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), is_root)
}

/// Version 1's shares (2 to 262144) as version 2's weight (1 to 10000), as container runtimes convert them.
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Quota;

    #[test]
    fn shares_become_weights_over_the_whole_range() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }

    #[test]
    fn both_versions_get_their_files() {
        let base = tempfile::tempdir().unwrap();
        let spec = ResourceSpec {
            quota: Some(Quota::of_millis(250)),
            shares: Some(512),
            cpuset: None,
            memory: Some(1 << 20),
            ..ResourceSpec::default()
        };
        let read = |path: &str| std::fs::read_to_string(base.path().join(path)).unwrap();
        let unified = Cgroup { hierarchy: Hierarchy::Unified(base.path().to_owned()), name: "two".into() };
        std::fs::create_dir(base.path().join("two")).unwrap();
        unified.apply(&spec).unwrap();
        assert_eq!((read("two/cpu.max"), read("two/memory.max")), ("25000 100000".into(), "68157440".into()));
        let parents = vec![("cpu", base.path().join("cpu")), ("memory", base.path().join("memory"))];
        let split = Cgroup { hierarchy: Hierarchy::Split(parents), name: "one".into() };
        for directory in ["cpu/one", "memory/one"] {
            std::fs::create_dir_all(base.path().join(directory)).unwrap();
        }
        split.apply(&spec).unwrap();
        assert_eq!(
            (read("cpu/one/cpu.cfs_quota_us"), read("cpu/one/cpu.shares")),
            ("25000".into(), "512".into())
        );
        split.add(7).unwrap();
        assert_eq!(read("memory/one/cgroup.procs"), "7");
        let cpuset = ResourceSpec { cpuset: Some("0".into()), ..Default::default() };
        assert!(split.apply(&cpuset).is_err(), "a limit that cannot be held was taken");
    }
}
