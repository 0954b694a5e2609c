//! A container as sessions see it, whatever holds it.

use agent::failure::Failure;
use agent::process::Process;
use agent::resolver::Resolver;
use agent::session::Ward;
use agent::tools;
use agent_protocol::message::{ContainerPlan, InterfacePlan, ProcessPlan, RootPlan, Usage};
use agent_protocol::mount::MountSource;
use rustix::process::Pid;

use crate::{cgroup, limits};

/// What differs between the isolations.
pub trait Kind {
    /// Starts the main process.
    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure>;
    /// Starts one more process.
    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure>;
    /// Where the files are, of a container whose main process is `main`, or that has none.
    fn place(&self, main: Option<Pid>) -> tools::Place<'_>;
    /// Who answers its questions for names, if that is up to us.
    fn resolver(&mut self) -> Option<&mut Resolver> {
        None
    }
    /// The main process is gone: nothing else of the container may go on.
    fn end(&mut self);
    /// Removes whatever is left.
    fn leave(&mut self);
}

/// ```text
/// Idle ── start ──► Running ── main_ended ──► Ended
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Running(Pid),
    Ended,
}

/// One container.
pub struct Wards {
    id: String,
    kind: Box<dyn Kind>,
    state: State,
    off: bool,
}

impl Wards {
    /// The container `id`, which `kind` holds.
    pub fn new(id: &str, kind: Box<dyn Kind>) -> Self {
        Self { id: id.to_owned(), kind, state: State::Idle, off: false }
    }

    /// Who answers questions for names.
    pub fn resolver(&mut self) -> Option<&mut Resolver> {
        self.kind.resolver()
    }

    /// Removes whatever is left. Until then the keeper reads what the container has used.
    pub fn leave(&mut self) {
        self.kind.end();
        self.kind.leave();
    }

    /// It is time to go: the host said so, or the container is over and the host hung up.
    pub fn is_over(&self, host_gone: bool) -> bool {
        self.off || (host_gone && self.state == State::Ended)
    }
}

impl Ward for Wards {
    fn prepare(&mut self, _: &RootPlan) -> Result<(), Failure> {
        Err(Failure::agent("there are templates of VMs only"))
    }

    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        if self.state != State::Idle {
            return Err(Failure::agent("the container was started already"));
        }
        if plan.mounts.iter().any(|mount| matches!(mount.source, MountSource::Disk { .. })) {
            return Err(Failure::agent("a volume that is a disk needs --isolation vm"));
        }
        self.state = State::Ended;
        let plan = ContainerPlan { process: limits::possible(&plan.process), ..plan.clone() };
        let process = self.kind.start(&plan)?;
        self.state = State::Running(process.pid());
        Ok(process)
    }

    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure> {
        match self.state {
            State::Running(_) => self.kind.exec(&limits::possible(plan)),
            _ => Err(Failure::agent("the container is not running")),
        }
    }

    fn adopt(&mut self, _: &ContainerPlan) -> Result<Process, Failure> {
        Err(Failure::agent("there are copies of VMs only"))
    }

    fn hold(&mut self, _: Process) {}

    fn release(&mut self) -> Option<Process> {
        None
    }

    fn is_main(&self, pid: Pid) -> bool {
        self.state == State::Running(pid)
    }

    fn main_ended(&mut self) {
        self.state = State::Ended;
        self.kind.end();
    }

    fn request_power_off(&mut self) {
        self.off = true;
    }

    fn place_for_tools(&self) -> Result<tools::Place<'_>, Failure> {
        match self.state {
            State::Idle => Ok(self.kind.place(None)),
            State::Running(main) => Ok(self.kind.place(Some(main))),
            State::Ended => Err(Failure::agent("the container is not running")),
        }
    }

    fn connect(&mut self, _: Option<u8>, _: &InterfacePlan) -> Result<(), Failure> {
        Err(Failure::agent("only a VM's interfaces come and go while it runs"))
    }

    fn disconnect(&mut self, _: [u8; 6]) -> Result<(), Failure> {
        Err(Failure::agent("only a VM's interfaces come and go while it runs"))
    }

    fn usage(&self) -> Result<Usage, Failure> {
        Ok(cgroup::usage(&self.id, agent::usage::read()?))
    }
}
