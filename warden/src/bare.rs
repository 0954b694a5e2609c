//! `--isolation process`: another root directory, nothing else. The host's processes, network, devices and privileges
//! are the process's too.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use agent::failure::{Context as _, Failure};
use agent::process::{First, Process, capabilities, spawn};
use agent::tools::Place;
use agent_protocol::message::{ContainerPlan, ProcessPlan};
use agent_protocol::mount::{MountPlan, MountSource};
use rustix::fs::{CWD, FileType};
use rustix::mount::{MountFlags, OpenTreeFlags, mount, mount_remount, open_tree};
use rustix::process::{Pid, chdir, chroot};

use crate::cgroup::Track;
use crate::names::ROOT;
use crate::place::Base;
use crate::wards::Kind;
use crate::{WardenConfig, cgroup, idmap, names, root};

/// A process with another root.
pub struct Bare {
    id: String,
    base: Base,
    track: Track,
    /// What the plan's mounts name by number.
    shares: Vec<OwnedFd>,
    /// Every one that lighter has.
    capabilities: Vec<String>,
}

/// The capabilities of this process.
fn own_capabilities() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    capabilities::names_of(bits.unwrap_or_default())
}

impl Bare {
    /// Makes the container's root the warden's own.
    pub fn enter(config: &WardenConfig) -> Result<Self, Failure> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let sys = open_tree(CWD, "/sys", flags).during("take /sys")?;
        let shares = (0..config.shares.len()).map(|number| idmap::copy_of(Path::new(&names::share(number))));
        let shares = shares.collect::<Result<Vec<_>, _>>()?;
        let base = Base::open()?;
        chdir(ROOT)
            .and_then(|()| chroot("."))
            .and_then(|()| chdir("/"))
            .during("enter the container's root")?;
        root::mount_on("/proc", "proc")?;
        root::directory("/sys")?;
        // The host's as it is, with its cgroups, by which the warden finds its processes again.
        idmap::place(&sys, "/sys", None)?;
        root::mount_dev("/dev")?;
        if config.layer.is_none() {
            root::make_read_only()?;
        }
        Ok(Self {
            id: config.id.clone(),
            base,
            track: Track::make(&config.id)?,
            shares,
            capabilities: own_capabilities(),
        })
    }

    /// Within the container's root: no link leads out of it.
    fn mount(&self, plan: &MountPlan) -> Result<(), Failure> {
        let target = plan.target.as_str();
        let during = format!("mount on {target}");
        match &plan.source {
            MountSource::Tmpfs { flags, data } => {
                std::fs::create_dir_all(target).during(&during)?;
                let data = CString::new(data.as_str())
                    .map_err(|_| Failure::agent("a NUL byte in a mount option"))?;
                let flags = MountFlags::from_bits_truncate(*flags);
                mount("tmpfs", target, "tmpfs", flags, Some(data.as_c_str())).during(&during)?;
            }
            MountSource::Disk { .. } => return Err(Failure::agent("a volume that is a disk needs a VM")),
            MountSource::Secrets(_) => return Err(Failure::agent("secrets need a VM")),
            MountSource::Share(number) => {
                let share = self.shares.get(usize::from(*number));
                let share = share.ok_or_else(|| Failure::agent("a mount of nothing"))?;
                let stat = rustix::fs::fstat(share).during(&during)?;
                match FileType::from_raw_mode(stat.st_mode).is_dir() {
                    true => std::fs::create_dir_all(target).during(&during)?,
                    false => {
                        Path::new(target).parent().map_or(Ok(()), std::fs::create_dir_all).during(&during)?;
                        std::fs::File::options().create(true).append(true).open(target).during(&during)?;
                    }
                }
                idmap::place(share, target, None)?;
            }
        }
        match plan.read_only {
            true => mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").during(&during),
            false => Ok(()),
        }
    }

    fn spawn(&self, plan: &ProcessPlan) -> Result<Process, Failure> {
        let plan = ProcessPlan { capabilities: self.capabilities.clone(), ..plan.clone() };
        self.track.within(|| spawn(&plan, First::No))
    }
}

impl Kind for Bare {
    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        plan.mounts.iter().try_for_each(|mount| self.mount(mount))?;
        self.spawn(&plan.process)
    }

    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure> {
        self.spawn(plan)
    }

    fn place(&self, _: Option<Pid>) -> Place<'_> {
        self.base.of_bare()
    }

    fn end(&mut self) {
        cgroup::kill(&self.id);
    }

    fn leave(&mut self) {
        cgroup::sweep(&self.id);
    }
}
