//! `--isolation container`: every namespace, cgroups, capabilities, a system call filter, by an OCI runtime.

use std::fs;
use std::os::fd::AsFd as _;

use agent::failure::{Context as _, Failure, check};
use agent::network;
use agent::process::{Process, stdio};
use agent::resolver::Resolver;
use agent::tools::Place;
use agent_protocol::message::{ContainerPlan, NetworkPlan, ProcessPlan};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::names::{BASE, BUNDLE};
use crate::place::Base;
use crate::questions::Keeper;
use crate::runc::{Runc, Streams};
use crate::wards::Kind;
use crate::{WardenConfig, bundle, cgroup, files, idmap, root};

/// A container of the OCI runtime.
pub struct Contained {
    config: WardenConfig,
    runc: Runc,
    base: Base,
    /// Until the container starts.
    keeper: Option<Keeper>,
    resolver: Option<Resolver>,
}

impl Contained {
    /// Makes what it needs in the warden's namespaces.
    pub fn prepare(config: &WardenConfig, keeper: Keeper) -> Result<Self, Failure> {
        let runc = Runc::find(&config.id)?;
        // The runtime hands nodes on, and the host's may be closed to others.
        root::mount_dev(&format!("{BASE}/dev"))?;
        rustix::mount::mount_move(format!("{BASE}/dev"), "/dev").during("lay nodes over /dev")?;
        let (base, keeper, resolver) = (Base::open()?, Some(keeper), None);
        Ok(Self { config: config.clone(), runc, base, keeper, resolver })
    }
}

impl Kind for Contained {
    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        files::write(plan, idmap::base(&self.config.id))?;
        let config = bundle::config(&self.config, plan, &files::account(&plan.process)?);
        write_json(&format!("{BUNDLE}/config.json"), &config)?;
        let process = launch(&plan.process, |streams| self.runc.create(streams))?;
        self.resolver = connect(process.pid(), plan.network.as_ref(), self.keeper.take())?;
        self.runc.start()?;
        Ok(process)
    }

    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure> {
        let file = format!("{BUNDLE}/process.json");
        write_json(&file, &bundle::process(plan, &files::account(plan)?))?;
        launch(plan, |streams| self.runc.exec(&file, streams))
    }

    fn place(&self, main: Option<Pid>) -> Place<'_> {
        self.base.of_contained(main, idmap::base(&self.config.id))
    }

    fn resolver(&mut self) -> Option<&mut Resolver> {
        self.resolver.as_mut()
    }

    /// With its init the kernel ended everything else.
    fn end(&mut self) {
        self.resolver = None;
    }

    fn leave(&mut self) {
        self.runc.delete();
        cgroup::sweep(&self.config.id);
    }
}

fn write_json(path: &str, value: &serde_json::Value) -> Result<(), Failure> {
    fs::write(path, value.to_string()).during(path)
}

/// Starts a process with the streams that its plan asks for.
fn launch(
    plan: &ProcessPlan,
    start: impl FnOnce(Streams) -> Result<(Pid, Option<std::os::fd::OwnedFd>), Failure>,
) -> Result<Process, Failure> {
    match plan.terminal {
        None => {
            let (ours, theirs) = stdio::open(plan)?;
            let (pid, _) = start(Streams::Pipes([theirs.stdin, theirs.stdout, theirs.stderr]))?;
            Ok(Process::new(pid, ours))
        }
        Some(size) => {
            let (pid, master) = start(Streams::Terminal)?;
            let master = master.ok_or_else(|| Failure::agent("runc sent no terminal"))?;
            stdio::set_size(&master, size);
            Ok(Process::new(pid, stdio::of_terminal(master)?))
        }
    }
}

/// Gives the container `pid` its interfaces, which are in the warden's network namespace, and configures them there.
/// Questions for names are taken there too, where the plan wants it.
fn connect(
    pid: Pid,
    plan: Option<&NetworkPlan>,
    keeper: Option<Keeper>,
) -> Result<Option<Resolver>, Failure> {
    let number = pid.as_raw_nonzero().get();
    let interfaces = plan.map_or(0, |plan| plan.interfaces.len());
    if interfaces > 0 {
        network::give_away(interfaces, number.unsigned_abs())?;
    }
    let namespace =
        fs::File::open(format!("/proc/{number}/ns/net")).during("open the container's network")?;
    let own = fs::File::open("/proc/self/ns/net").during("open the warden's network")?;
    let enter = |namespace: &fs::File| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .during("change networks")
    };
    enter(&namespace)?;
    let keeper = keeper.filter(|_| plan.is_some_and(|plan| plan.resolver));
    let configured = network::prepare()
        .and_then(|_| plan.map_or(Ok(()), network::configure))
        .and_then(|()| keeper.map(|keeper| Resolver::open(keeper.connect())).transpose());
    enter(&own)?;
    configured
}

/// Enters the network namespace that the keeper made, with the container's interfaces.
pub fn enter_network(number: i32) -> Result<(), Failure> {
    let namespace = idmap::inherited(number)?;
    // SAFETY: setns takes two integers; the descriptor is open.
    check(unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), libc::CLONE_NEWNET) })
        .during("enter the container's network")
        .map(drop)
}
