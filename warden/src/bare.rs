//! `--isolation process`: another root directory, nothing else. The host's processes, network, devices and privileges
//! are the process's too.

use agent::failure::{Context as _, Failure};
use agent::process::{First, Process, capabilities, spawn};
use agent_protocol::message::{ContainerPlan, ProcessPlan};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{chdir, chroot};

use crate::cgroup::Track;
use crate::names::ROOT;
use crate::wards::Kind;
use crate::{WardenConfig, cgroup, idmap, root};

/// A process with another root.
pub struct Bare {
    id: String,
    track: Track,
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
        Ok(Self { id: config.id.clone(), track: Track::make(&config.id)?, capabilities: own_capabilities() })
    }

    fn spawn(&self, plan: &ProcessPlan) -> Result<Process, Failure> {
        let plan = ProcessPlan { capabilities: self.capabilities.clone(), ..plan.clone() };
        self.track.within(|| spawn(&plan, First::No))
    }
}

impl Kind for Bare {
    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        self.spawn(&plan.process)
    }

    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure> {
        self.spawn(plan)
    }

    fn leave(&mut self) {
        cgroup::sweep(&self.id);
    }
}
