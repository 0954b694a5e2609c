//! The container of this machine: entered once, then every process starts inside it.

mod copy;
mod dev;
pub mod files;
mod limits;
mod mounts;
mod quiet;
mod random;
pub mod root;
mod shares;
mod ward;

use std::path::Path;

use agent_protocol::message::{ContainerPlan, FailureKind, NetworkPlan, ProcessPlan, RootPlan};
use rustix::process::Pid;

use crate::failure::{Context, Failure};
use crate::forward::Forwarder;
use crate::process::{self, First, Process};
use crate::resolver::Resolver;
use crate::{clock, network, tools, transport};

/// ```text
/// Idle -> prepare -> Prepared -> enter -> Entered -> start_main -> Running -> main_ended -> Ended
/// ```
#[derive(Default)]
pub struct Container {
    state: State,
    /// What [`Container::prepare`] made.
    prepared: Option<Prepared>,
    /// Answers questions for names, if this container's are lighter's to answer.
    resolver: Option<Resolver>,
    /// Takes connections for the container's ports, where the host cannot call them.
    forwarder: Option<Forwarder>,
    power_off_at_exit: bool,
    power_off_requested: bool,
    /// The main process while no session has it.
    held: Option<Process>,
    /// How `eth0` was configured last.
    network: Option<NetworkPlan>,
}

/// The container's root without anything of one container in it.
struct Prepared {
    root: RootPlan,
    /// The agent's own root, below the container's.
    outside: root::Outside,
    files: files::Files,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Prepared,
    Entered,
    Running(Pid),
    Ended,
}

impl Container {
    /// Makes the container's root the agent's own, with everything in it that no plan decides.
    pub fn prepare(&mut self, plan: &RootPlan) -> Result<(), Failure> {
        if self.state != State::Idle {
            return Err(Failure::agent("the container's root was mounted already"));
        }
        // Whatever fails from here on, it cannot be tried again.
        self.state = State::Ended;
        if network::prepare()? > 0 {
            self.resolver = Some(Resolver::open(Box::new(transport::connect_later))?);
        }
        let (files, overlays) = files::make()?;
        let outside = root::enter(plan)?;
        dev::mount_all()?;
        quiet::settle();
        files::lay(overlays)?;
        if plan.writable_device.is_none() {
            root::make_read_only()?;
        }
        self.prepared = Some(Prepared { root: plan.clone(), outside, files });
        self.state = State::Prepared;
        Ok(())
    }

    /// Makes the machine that of the plan.
    pub fn enter(&mut self, plan: &ContainerPlan) -> Result<(), Failure> {
        if self.state == State::Idle {
            self.prepare(&plan.root)?;
        }
        if self.state != State::Prepared {
            return Err(Failure::agent("the container was started already"));
        }
        self.state = State::Entered;
        self.power_off_at_exit = plan.power_off_at_exit;
        let prepared = self.prepared.as_ref().filter(|prepared| prepared.root == plan.root);
        let prepared = prepared.ok_or_else(|| Failure::agent("the machine was prepared for another root"))?;
        // First: whatever comes later may draw from it, and a template's other clones have the same state.
        random::reseed(&plan.entropy);
        clock::set_realtime(plan.realtime_ns).during("set the clock")?;
        rustix::system::sethostname(plan.hostname.as_bytes()).during("set the host name")?;
        if let Some(network) = &plan.network {
            network::configure(network)?;
            self.network = Some(network.clone());
        }
        if !plan.network.as_ref().is_some_and(|network| network.resolver) {
            self.resolver = None;
        }
        let forward = plan.network.iter().filter(|network| network.forward);
        if let Some((address, _)) = forward.flat_map(|network| &network.interfaces).find_map(|eth| eth.ipv4) {
            self.forwarder = Some(Forwarder::open(address)?);
        }
        limits::set(&plan.limits)?;
        prepared.files.write(plan)?;
        shares::mount_all(&plan.mounts, &prepared.outside, plan.root.writable_device.is_none())
    }

    /// Starts the main process, the init of a PID namespace of its own.
    pub fn start_main(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        // SAFETY: only children are affected: the next one becomes the namespace's init.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }
            .during("make a PID namespace (has this kernel CONFIG_PID_NS?)")?;
        let process = process::spawn(&plan.process, First::Yes)?;
        self.state = State::Running(process.pid());
        Ok(process)
    }

    /// Starts one more process in the container.
    pub fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure> {
        if !matches!(self.state, State::Running(_)) {
            return Err(Failure { kind: FailureKind::Agent, message: "the container is not running".into() });
        }
        process::spawn(plan, First::No)
    }

    /// Where tools find the container's files: from when its root is there to the end of its main process.
    pub fn place_for_tools(&self) -> Result<tools::Place<'_>, Failure> {
        match (self.state, &self.prepared) {
            (State::Prepared | State::Entered | State::Running(_), Some(prepared)) => {
                let writable = prepared.root.writable_device.as_deref();
                let enter = Box::new(|mounts| match mounts {
                    tools::Mounts::With => Ok(()),
                    tools::Mounts::Without => tools::go_below_mounts(),
                });
                let (upper, image) = (Path::new(root::UPPER), Path::new(root::IMAGE));
                Ok(tools::Place { outside: prepared.outside.root(), upper, image, writable, enter })
            }
            _ => Err(Failure::agent("the container is not running")),
        }
    }

    /// Who answers questions for names, and who takes connections for the container's ports.
    pub fn helpers(&mut self) -> (Option<&mut Resolver>, Option<&mut Forwarder>) {
        (self.resolver.as_mut(), self.forwarder.as_mut())
    }

    /// Whether `pid` is the main process.
    pub fn is_main(&self, pid: Pid) -> bool {
        self.state == State::Running(pid)
    }

    /// The main process is gone, or could not be started.
    pub fn main_ended(&mut self) {
        self.state = State::Ended;
    }

    /// The host wants the machine off.
    pub fn request_power_off(&mut self) {
        self.power_off_requested = true;
    }

    /// It is time to power off: the host said so, or the container is over and the host hung up. Not before:
    /// what the host's end has not read yet would be lost with the machine.
    pub fn power_off_due(&self, host_gone: bool) -> bool {
        self.power_off_requested || (self.power_off_at_exit && self.state == State::Ended && host_gone)
    }

    /// Makes what was written durable and the writable layer clean.
    pub fn leave(&mut self) {
        rustix::fs::sync();
        if let Some(prepared) = self.prepared.take() {
            prepared.outside.close();
        }
    }
}

#[cfg(test)]
impl Container {
    /// A container whose root is the test's own, in which processes can be started.
    pub fn running() -> Self {
        Container { state: State::Running(rustix::process::getpid()), ..Container::default() }
    }
}
