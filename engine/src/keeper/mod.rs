//! The keeper: the one process that owns a running container, from its start to its end.
//!
//! ```text
//! lighter run ── spawns ──► lighter keep ID ── spawns ──► VMM (dies with the keeper)
//!      └── keeper.sock ─────────┤
//! attach, stop, pause, wait ────┘
//! ```
//!
//! It holds the container's locks, speaks with the agent, writes the log, serves `keeper.sock`, starts the container
//! again where its policy says so, and notes in `state.json` what becomes of it. `exec` goes past it, to the agent.

pub mod boot;
pub mod client;
mod health;
mod holding;
mod hub;
mod life;
mod messages;
pub mod protocol;
pub mod spawn;
mod usage;
mod waiting;
mod warded;
mod wiring;

#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_protocol::HOST_PORT;
use agent_protocol::message::{ContainerPlan, TerminalSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::config::{RestoreConfig, VmConfig};

use self::wiring::Wiring;
use crate::container::Container;
use crate::container::id::ContainerId;
use crate::container::record;
use crate::container::spec::ContainerSpec;
use crate::container::state::{Health, State, Status, now_ns};
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::events::{Event, emit};
use crate::isolation::Isolation;
use crate::log::writer::Writer;
use crate::network::{self, Attachment, Networks};
use crate::process::VmProcess;
use crate::resources::cgroup::{self, Cgroup, CgroupError};
use crate::run::machine::Machine;
use crate::run::warm::{Level, Warmer};
use crate::session::signals::Signals;
use crate::session::{Outcome, SessionError};
use crate::snapshot::Resumption;
use crate::template::{MakeError, Template, TemplateStore};
use crate::trace::Trace;
use crate::volumes::spec::DiskPlaces;
use crate::volumes::{self, ClaimedDisk, FileServer, VolumeError, VolumeStore};
use health::Checker;
use hub::{Farewell, Hub};
use life::{Agent, Change, Life, Setup};
use protocol::{Reply, Request};

/// How long a process may take to end when asked to, where nobody says.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before a container is started again; it doubles each time, up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause before a container is started again.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A container that ran for so long has started well.
const GOOD_RUN: Duration = Duration::from_secs(10);
/// How long before its end a rented time is warned of, at most.
const TTL_WARNING: Duration = Duration::from_secs(60);

/// Keeps the container `id` to its end. The calling thread must be the one that lives longest: the VM dies with it.
/// `locks` are those of the parent process; `first` is the first client.
pub fn keep(
    dirs: &Dirs,
    container: Container,
    first: Option<UnixStream>,
    trace: Trace,
) -> Result<(), RunError> {
    let signals = Signals::block().map_err(|source| RunError::Host { action: "watch signals", source })?;
    let (name, spec, state) = record::load(&container)?;
    let host = |action| move |source| RunError::Host { action, source };
    let listener = UnixListener::bind(container.keeper()).map_err(host("listen for clients"))?;
    let log = Writer::open(&container.log(), spec.log).map_err(host("open the container's log"))?;
    // Whoever leaves a terminal leaves its process waiting for the next one.
    let stdin_once = spec.lifetime.stdin_once && spec.plan.process().terminal.is_none();
    let hub = Hub::new(listener, first, log, stdin_once).map_err(host("listen for clients"))?;
    let state = State { keeper: Some(std::process::id()), restarts: 0, stopped: false, ..state };
    Keeper { dirs, container, name, spec, state, signals, hub, trace, farewell: Farewell::default() }.keep()
}

struct Keeper<'a> {
    dirs: &'a Dirs,
    container: Container,
    name: String,
    spec: ContainerSpec,
    state: State,
    signals: Signals,
    hub: Hub,
    trace: Trace,
    /// Clients of ends before the last one.
    farewell: Farewell,
}

impl Keeper<'_> {
    fn keep(mut self) -> Result<(), RunError> {
        self.trace.end("keeper");
        let mut backoff = BACKOFF;
        loop {
            self.set_status(Status::Starting)?;
            let began = Instant::now();
            let outcome = self
                .live()
                .unwrap_or_else(|error| Outcome::Failed { message: vmm::text::with_causes(&error) });
            let ran = self.state.started_ns.is_some() && self.state.status != Status::Starting;
            let code = outcome.exit_code();
            self.note_end(&outcome);
            let restart = self.spec.lifetime.restart;
            if self.state.stopped || !ran || !restart.restarts(code, self.state.restarts) {
                return self.finish(&outcome);
            }
            self.set_status(Status::Restarting)?;
            self.farewell.join(self.hub.dismiss(&outcome));
            backoff = if began.elapsed() >= GOOD_RUN { BACKOFF } else { (backoff * 2).min(MAX_BACKOFF) };
            if self.is_stopped_within(backoff) {
                return self.finish(&outcome);
            }
            self.state.restarts = self.state.restarts.saturating_add(1);
            self.trace = Trace::start();
        }
    }

    /// The last end.
    fn finish(mut self, outcome: &Outcome) -> Result<(), RunError> {
        (self.state.keeper, self.state.vmm, self.state.health, self.state.address) = (None, None, None, None);
        self.state.ports.clear();
        let saved = self.set_status(Status::Exited);
        let (ends, cpu_ns) = self.trace.hand_over();
        self.hub.tell_all(&Reply::Phases { ends, cpu_ns, used: self.trace.used() });
        // One that an update made.
        cgroup::sweep(self.spec.id.as_str());
        // First the container: whoever hears of its end may start it again.
        if self.spec.lifetime.remove {
            self.container.remove();
            VolumeStore::new(self.dirs).remove_anonymous(&self.spec.mounts);
            emit(self.dirs, &Event::new("container", "destroy", self.spec.id.as_str(), &self.name));
        } else {
            drop(self.container);
        }
        self.farewell.join(self.hub.dismiss(outcome));
        // Its file is gone with the container's run directory; whoever connected meanwhile finds it closed.
        drop(self.hub);
        self.farewell.wait();
        saved
    }

    fn note_end(&mut self, outcome: &Outcome) {
        self.state.exit_code = Some(outcome.exit_code());
        self.state.error = outcome.problem().map(str::to_owned);
        self.state.finished_ns = Some(now_ns());
        self.event("die", &[("exitCode", outcome.exit_code().to_string())]);
    }

    fn set_status(&mut self, status: Status) -> Result<(), RunError> {
        self.state.status = status;
        Ok(self.container.save(&self.state)?)
    }

    fn event(&self, action: &str, attributes: &[(&str, String)]) {
        let event = Event::new("container", action, self.spec.id.as_str(), &self.name)
            .with("image", &self.spec.image);
        emit(self.dirs, &attributes.iter().fold(event, |event, (name, value)| event.with(name, value)));
    }

    /// One start and run. A template that the VMM refuses is made anew, once.
    fn live(&mut self) -> Result<Outcome, RunError> {
        if self.spec.isolation != Isolation::Vm {
            return self.live_warded();
        }
        let copy = Resumption::claim(self.container.data());
        self.renew(copy.is_none())?;
        let mut machine = Machine::of(&self.spec, self.dirs, self.container.data())?;
        if let Some(copy) = copy {
            machine.agent = copy.agent();
            return self.live_in(&machine, None, Some(&copy));
        }
        machine.keep_agent(self.container.data());
        for may_retry in [true, false] {
            let template = match self.template(&machine) {
                Ok(template) => template,
                Err(MakeError::Interrupted { signal }) => return Ok(Outcome::Interrupted { signal }),
                Err(error) => return Err(error.into()),
            };
            let fresh = !self.container.disk().exists();
            machine.make_layer(&self.container, &self.spec.plan, template.as_ref())?;
            self.trace.end("disks");
            let result = self.live_in(&machine, template.as_ref(), None);
            match (&result, template) {
                // Refused before anything ran, and it would be the next time too.
                (Err(RunError::Session(SessionError::Vm(why))), Some(template)) if may_retry => {
                    let text =
                        format!("the image's template could not be used, so another one is made: {why}");
                    self.hub.tell_all(&Reply::Notice(text));
                    TemplateStore::new(self.dirs).discard(template);
                    if fresh && self.spec.plan.writable() {
                        let _ = std::fs::remove_file(self.container.disk());
                    }
                }
                _ => return result,
            }
        }
        Err(RunError::Session(SessionError::Vm("the machine could not be cloned".to_owned())))
    }

    /// The template to clone. A disk that was used is not the one that an image's template knows, so then it is the
    /// machine's.
    fn template(&mut self, machine: &Machine) -> Result<Option<Template>, MakeError> {
        let used = self.spec.plan.writable() && self.container.disk().exists();
        let hub = &mut self.hub;
        let notices = std::cell::RefCell::new(Vec::new());
        let notice = |text: &str| notices.borrow_mut().push(text.to_owned());
        if self.spec.machine.cold {
            return Ok(None);
        }
        let (plan, signals) = (&self.spec.plan, &self.signals);
        let warmer = Warmer { dirs: self.dirs, machine, plan, signals, notice: &notice };
        let template = warmer.template(if used { Level::Machine } else { Level::Image });
        notices.into_inner().into_iter().for_each(|text| hub.tell_all(&Reply::Notice(text)));
        template
    }

    fn live_in(
        &mut self,
        machine: &Machine,
        template: Option<&Template>,
        copy: Option<&Resumption>,
    ) -> Result<Outcome, RunError> {
        let mut attachment = self.attach()?;
        self.note_network(&attachment);
        self.trace.end("network");
        let mut config = machine.config(&self.container, &self.spec.plan, Some(&attachment), template);
        Machine::limit(&mut config, &self.spec.resources.rates);
        let volumes = self.claim_disks()?;
        let disks = Machine::add_volumes(&mut config, &volumes);
        if let Some(copy) = copy {
            config.restore = Some(RestoreConfig::full(copy.machine()));
        }
        let vsock = self.container.vsock();
        let agent = if config.restore.is_some() {
            Agent::Listens(vsock.clone())
        } else {
            let socket = PathBuf::from(format!("{}_{HOST_PORT}", vsock.display()));
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket)
                .map_err(|source| RunError::Host { action: "listen for the agent", source })?;
            Agent::Connects(listener)
        };
        for socket in [&vsock, &self.container.control()] {
            // Left by the life before this one.
            let _ = std::fs::remove_file(socket);
        }
        let cgroup = self.cgroup()?;
        let interfaces = attachment.interfaces();
        let mut files = self.serve_files()?;
        let socket = files.as_ref().and_then(FileServer::socket);
        if let (Some(fs), Some(socket)) = (&mut config.fs, socket) {
            fs.fd = Some(socket.as_raw_fd());
        }
        let vm = VmProcess::spawn(&machine.vmm(), &config, interfaces, socket, &self.container.vmm_log())?;
        self.container.record_vmm(vm.id())?;
        for process in files.iter().map(FileServer::id).chain([vm.id()]) {
            cgroup.iter().try_for_each(|cgroup| cgroup.add(process))?;
        }
        files.iter_mut().for_each(FileServer::handed_over);
        attachment.handed_over();
        self.live_with(vm, (&config, agent), &mut attachment, &disks, copy.is_some())
    }

    /// A run in what was just started, to its end.
    fn live_with(
        &mut self,
        vm: VmProcess,
        (config, agent): (&VmConfig, Agent),
        attachment: &mut Attachment,
        disks: &DiskPlaces,
        adopts: bool,
    ) -> Result<Outcome, RunError> {
        let vsock = self.container.vsock();
        let mounts = volumes::spec::plan(&self.spec.mounts, &VolumeStore::new(self.dirs), disks)?;
        self.state.vmm = Some(vm.id());
        let network = attachment.plan().clone();
        let make_plan = |size: Option<TerminalSize>| {
            let mut plan = self.spec.plan.clone();
            size.into_iter().for_each(|size| plan.resize(size));
            ContainerPlan { mounts: mounts.clone(), ..plan.finish(network.clone()) }
        };
        let lifetime = &self.spec.lifetime;
        let checker = self.spec.health.as_ref();
        let checker = checker.map(|health| Checker::new(health, self.spec.plan.process(), vsock.clone()));
        let id = self.spec.id.as_str();
        let isolation = self.spec.isolation;
        let (state, container) = (&mut self.state, &self.container);
        state.health = checker.as_ref().map(|_| Health::Starting);
        let mut changed = |change| note(state, container, self.dirs, (id, &self.name), change);
        let setup = Setup {
            config,
            agent,
            plan: &make_plan,
            stop_signal: self.spec.plan.stop_signal,
            stop_timeout: lifetime.stop_timeout.map_or(STOP_TIMEOUT, Duration::from_secs),
            orderly: (!lifetime.remove && self.spec.plan.writable()) || self.spec.isolation != Isolation::Vm,
            console: self.container.console_log(),
            signals: &self.signals,
            hub: &mut self.hub,
            adopts,
            trace: &mut self.trace,
            changed: &mut changed,
            ttl: lifetime.ttl.and_then(rented),
            health: checker,
            wiring: (self.spec.isolation == Isolation::Vm).then(|| Wiring {
                attachment,
                request: network::Request {
                    id: &self.spec.id,
                    name: &self.name,
                    hostname: self.spec.plan.hostname(),
                    spec: &self.spec.network,
                },
                limits: self.spec.resources.rates.interface(),
                changed: false,
            }),
            used: &|process| usage::of(isolation, id, process),
        };
        Ok(Life::new(setup, vm).run()?)
    }

    /// Makes its volumes; gives them and the host's directories that it has.
    fn shares(&self) -> Result<Vec<shares::Share>, RunError> {
        let store = VolumeStore::new(self.dirs);
        store.ensure(&self.spec.mounts, true)?;
        store.fill(&self.spec.mounts, &self.container.data().join(&self.spec.rootfs))?;
        Ok(volumes::spec::shares(&self.spec.mounts, &store))
    }

    /// Its volumes that are disks, for as long as the machine runs.
    fn claim_disks(&self) -> Result<Vec<ClaimedDisk>, RunError> {
        let claimed = VolumeStore::new(self.dirs).claim_disks(&self.spec.mounts)?;
        match claimed.len() {
            count if count > volumes::MAX_DISKS => Err(VolumeError::TooManyDisks { count }.into()),
            _ => Ok(claimed),
        }
    }

    /// Makes its volumes and starts what serves them and the host's directories, if it has any.
    fn serve_files(&self) -> Result<Option<FileServer>, RunError> {
        let shares = self.shares()?;
        if shares.is_empty() {
            return Ok(None);
        }
        let place = self.container.shares();
        std::fs::create_dir_all(&place)
            .map_err(|source| RunError::Host { action: "make a place for the shares", source })?;
        let event = Event::new("container", "shares-lost", self.spec.id.as_str(), &self.name);
        let dirs = self.dirs.clone();
        let lost = move |why: String| {
            eprintln!(
                "lighter: the server of the host's directories is gone ({why}): the container has them no more"
            );
            emit(&dirs, &event.with("reason", why));
        };
        Ok(Some(FileServer::spawn(&shares::Plan { place, shares }, &self.container.shares_log(), lost)?))
    }

    /// Takes limits and networks as they are now: they may have been changed. A machine that boots may have another size.
    fn renew(&mut self, boots: bool) -> Result<(), RunError> {
        let (_, spec, _) = record::load(&self.container)?;
        self.spec.resources = spec.resources;
        self.spec.network = spec.network;
        if let Some(memory_mib) = spec.machine.next_memory_mib.filter(|_| boots) {
            self.spec.machine.memory_mib = memory_mib;
            self.spec.machine.next_memory_mib = None;
            self.container.describe(&self.spec)?;
        }
        Ok(())
    }

    fn cgroup(&mut self) -> Result<Option<Cgroup>, RunError> {
        let resources = &self.spec.resources;
        if !resources.needs_cgroup() {
            return Ok(None);
        }
        match Cgroup::create(&self.spec.id, resources) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(error @ CgroupError::NoPlace) => {
                // The guest's own memory is a limit, too.
                if resources.limits_cpu() {
                    self.hub.tell_all(&Reply::Notice(format!("the limits are not held: {error}")));
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the container into its networks.
    fn attach(&self) -> Result<Attachment, RunError> {
        let request = network::Request {
            id: &self.spec.id,
            name: &self.name,
            hostname: self.spec.plan.hostname(),
            spec: &self.spec.network,
        };
        let networks = Networks::here(self.dirs)?;
        let mut attachment = match self.spec.isolation {
            Isolation::Container => networks.attach_namespace(&request)?,
            Isolation::Process | Isolation::Vm => networks.attach(&request)?,
        };
        let (dirs, id, name) = (self.dirs.clone(), self.spec.id.clone(), self.name.clone());
        let told = move |denial: network::services::Denial| {
            let event = Event::new("container", "egress-denied", id.as_str(), &name)
                .with("destination", denial.destination)
                .with("protocol", denial.protocol);
            emit(&dirs, &denial.port.iter().fold(event, |event, port| event.with("port", port)));
        };
        attachment.serve(&self.container.vsock(), Box::new(told))?;
        Ok(attachment)
    }

    fn note_network(&mut self, attachment: &Attachment) {
        let interface = attachment.plan().interfaces.first();
        self.state.address = interface.and_then(|interface| interface.ipv4).map(|(address, _)| address);
        self.state.mac = interface.map(|interface| network::spec::Mac(interface.mac).to_string());
        self.state.ports = attachment.published().to_vec();
    }

    /// Serves clients for `pause`; true if one of them, or a signal, wants the container to stay down.
    fn is_stopped_within(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.hub.forget_gone();
            let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
            let (whom, polled): (Vec<_>, Vec<_>) = self
                .hub
                .fds()
                .into_iter()
                .map(|(who, fd, flags)| (who, PollFd::from_borrowed_fd(fd, flags)))
                .unzip();
            fds.extend(polled);
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
            let ready: Vec<_> = fds
                .iter()
                .skip(1)
                .zip(whom)
                .filter(|(fd, _)| !fd.revents().is_empty())
                .map(|(_, who)| who)
                .collect();
            drop(fds);
            let requests: Vec<_> = ready.into_iter().flat_map(|who| self.hub.serve(who)).collect();
            for (number, request) in requests {
                match request {
                    Request::Stop { .. } | Request::Kill => {
                        self.state.stopped = true;
                        return true;
                    }
                    Request::Pause
                    | Request::Unpause
                    | Request::Hold
                    | Request::Release
                    | Request::Connect(_)
                    | Request::Disconnect(_) => {
                        self.hub.tell(number, &Reply::Refused("it is being started again".to_owned()));
                    }
                    Request::Process(_) | Request::Attach { .. } => {}
                }
            }
            while let Some(signal) = self.signals.next() {
                if matches!(signal, libc::SIGTERM | libc::SIGINT) {
                    return true;
                }
            }
        }
    }
}

/// Warning and end of a time that is rented from now on.
fn rented(seconds: u64) -> Option<(Instant, Instant)> {
    let ttl = Duration::from_secs(seconds);
    let now = Instant::now();
    Some((now.checked_add(ttl.saturating_sub(TTL_WARNING.min(ttl / 10)))?, now.checked_add(ttl)?))
}

/// Writes down what changed, for other commands to see.
fn note(state: &mut State, container: &Container, dirs: &Dirs, (id, name): (&str, &str), change: Change) {
    let event = |action: &str| emit(dirs, &Event::new("container", action, id, name));
    match change {
        Change::Started => {
            state.status = Status::Running;
            state.started_ns = Some(now_ns());
            (state.exit_code, state.error, state.finished_ns) = (None, None, None);
            event("start");
        }
        Change::Paused => {
            state.status = Status::Paused;
            event("pause");
        }
        Change::Unpaused => {
            state.status = Status::Running;
            event("unpause");
        }
        Change::Stopping => state.stopped = true,
        Change::TtlSoon => event("ttl-warning"),
        Change::TtlOver => {
            state.stopped = true;
            event("ttl");
        }
        Change::Health(health) => {
            state.health = Some(health);
            event(match health {
                Health::Starting => "health_status: starting",
                Health::Healthy => "health_status: healthy",
                Health::Unhealthy => "health_status: unhealthy",
            });
        }
    }
    // The state on disk lags behind until the next change; the container itself is not hurt.
    let _ = container.save(state);
}

/// The hidden verb's arguments, made whole.
pub fn inherit(dirs: &Dirs, id: &str, locks: [i32; 2]) -> Result<Container, RunError> {
    let host = |source| RunError::Host { action: "take over the container's locks", source };
    let id = ContainerId::parse(id).ok_or_else(|| host(std::io::ErrorKind::InvalidInput.into()))?;
    let [run, data] = locks.map(spawn::inherited);
    Ok(Container::inherit(dirs, id, [run.map_err(host)?, data.map_err(host)?]))
}
