//! The container of this machine: entered once, then every process starts inside it.

mod dev;
mod files;
mod mounts;
mod root;

use agent_protocol::message::{ContainerPlan, FailureKind, ProcessPlan};
use rustix::process::Pid;

use crate::failure::{Context, Failure};
use crate::process::{self, First, Process};
use crate::{clock, network};

/// ```text
/// Idle -> enter -> Entered -> start_main -> Running -> main_ended -> Ended
/// ```
#[derive(Default)]
pub struct Container {
    state: State,
    /// The agent's own root, below the container's.
    outside: Option<root::Outside>,
    power_off_at_exit: bool,
    power_off_requested: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Entered,
    Running(Pid),
    Ended,
}

impl Container {
    /// Sets up the machine as the plan says and makes the container's root the agent's own.
    pub fn enter(&mut self, plan: &ContainerPlan) -> Result<(), Failure> {
        if self.state != State::Idle {
            return Err(Failure::agent("the container was started already"));
        }
        // Whatever fails from here on, the plan cannot be tried again.
        self.state = State::Entered;
        self.power_off_at_exit = plan.power_off_at_exit;
        clock::set_realtime(plan.realtime_ns).during("set the clock")?;
        files::credit_entropy(&plan.entropy);
        rustix::system::sethostname(plan.hostname.as_bytes()).during("set the host name")?;
        network::loopback_up()?;
        if let Some(network) = &plan.network {
            network::configure(network)?;
        }
        let overlays = files::prepare(plan)?;
        self.outside = Some(root::enter(&plan.root)?);
        dev::mount_all()?;
        files::lay(overlays)?;
        if plan.root.writable_device.is_none() {
            root::make_read_only()?;
        }
        Ok(())
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
        if let Some(outside) = self.outside.take() {
            outside.close();
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
