//! One VMM with an API, from its command line to its end.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api_server::http::{Request, Response};
use api_server::wire::{InstanceInfo, Level, Metrics as MetricsConfig, VmState, WholeConfig};
use api_server::{Call, FIRECRACKER_VERSION, Fault, Phase, Server};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;

use super::arguments::Arguments;
use super::imds::SharedMetadata;
use super::log::Log;
use super::metadata::Metadata;
use super::metrics::Metrics;
use super::resources::Resources;
use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, EXIT_REFUSED_CALL, EXIT_STOPPED};
use crate::config::VmExit;
use crate::process::prepare_process;
use crate::seccomp::{self, Filters};
use crate::stop::StopSignals;
use crate::text::with_causes;
use crate::uffd;
use crate::vm::{Happening, Vm, VmError};

/// Largest configuration file that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// For so long the last answers may stay unread at the end.
const FAREWELL: Duration = Duration::from_millis(100);

/// A VMM with an API.
pub struct Instance {
    /// What it is called.
    pub id: String,
    /// Where it logs.
    pub log: Log,
    /// What it counts.
    pub metrics: Metrics,
    /// What the guest can ask for.
    pub metadata: SharedMetadata,
    /// What its VM is made of.
    pub resources: Resources,
    server: Option<Server>,
    boot_timer: bool,
    /// What the VM's threads may do.
    filters: Option<&'static Filters>,
}

/// A VM that is there, and how it is.
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// How it is.
    pub state: GuestState,
    /// When somebody asked for it; CLOCK_MONOTONIC nanoseconds.
    pub asked_at_ns: u64,
    /// Who gives the pages of its memory, after the VM so that it is dropped after it.
    pub handler: Option<uffd::Handler>,
}

/// How a VM is that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Its vCPUs are in the guest.
    Running,
    /// They are out of it.
    Paused,
    /// It was loaded from a snapshot and has not run yet.
    Loaded,
}

/// Why an instance ends without a guest's end.
#[derive(Debug)]
struct End {
    code: i32,
    message: String,
}

impl Instance {
    /// Runs to the end and gives the process's exit code.
    pub fn run(arguments: Arguments) -> i32 {
        let begin = Instant::now();
        let socket = arguments.api_socket.clone();
        let end = match Self::start(arguments, begin) {
            Ok((mut instance, signals)) => {
                let end = instance.serve(signals);
                if let Err(End { message, .. }) = &end {
                    instance.log.line(Level::Error, message);
                }
                if let Some(server) = &mut instance.server {
                    server.flush(FAREWELL);
                    // Ours: it was made by this process.
                    let _ = socket.map(std::fs::remove_file);
                }
                end
            }
            Err(end) => Err(end),
        };
        end.unwrap_or_else(|End { code, message }| {
            eprintln!("lighter-vmm: {message}");
            code
        })
    }

    fn start(arguments: Arguments, begin: Instant) -> Result<(Self, StopSignals), End> {
        prepare_process();
        let configuration = |fault: Fault| End { code: EXIT_CONFIGURATION, message: fault.message };
        let mut log = Log::new(&arguments.id);
        log.update(&arguments.logger).map_err(configuration)?;
        log.line(Level::Info, &format!("Running Firecracker v{FIRECRACKER_VERSION} (lighter)"));
        let signals = StopSignals::open().map_err(|error| failed(&error))?;
        let mut resources = Resources::default();
        let mut metadata = Metadata::new(arguments.max_metadata);
        if let Some(path) = &arguments.metadata {
            metadata.put(read_json(path)?).map_err(configuration)?;
        }
        let mut metrics_config = arguments
            .metrics_path
            .clone()
            .map(|metrics_path| MetricsConfig { metrics_path, ..MetricsConfig::default() });
        if let Some(path) = &arguments.config_file {
            let config: WholeConfig = read_json(path)?;
            if let Some(logger) = &config.logger {
                log.update(logger).map_err(configuration)?;
            }
            metrics_config = metrics_config.or(config.metrics.clone());
            resources = Resources::from_config(config).map_err(configuration)?;
        }
        let server = match &arguments.api_socket {
            Some(path) => Some(Server::listen(path, arguments.max_payload).map_err(|error| failed(&error))?),
            None => None,
        };
        let mut metrics = Metrics::new(&arguments.id, begin.elapsed());
        metrics_config.map_or(Ok(()), |config| metrics.configure(config)).map_err(configuration)?;
        let Arguments { id, boot_timer, no_seccomp, .. } = arguments;
        let filters = (!no_seccomp).then(|| seccomp::API.prepare(Some(EXIT_REFUSED_CALL)));
        let filters = filters.transpose().map_err(|error| failed(&error))?;
        let metadata = Arc::new(Mutex::new(metadata));
        Ok((Instance { id, log, metrics, metadata, resources, server, boot_timer, filters }, signals))
    }

    /// Limits the threads of `vm` from its start on.
    pub(super) fn limit_calls(&self, vm: &mut Vm) {
        self.filters.into_iter().for_each(|filters| vm.limit_calls(filters));
    }

    /// Serves until there is a VM, then until it ends.
    fn serve(&mut self, signals: StopSignals) -> Result<i32, End> {
        let guest = if self.resources.is_touched() {
            Some(self.boot().map_err(|fault| End { code: EXIT_FAILED, message: fault.message })?)
        } else {
            self.serve_before_start(&signals)?
        };
        let Some(mut guest) = guest else { return Ok(EXIT_STOPPED) };
        guest.vm.stop_on(signals);
        if let Some(server) = &self.server {
            let fd: OwnedFd = server.fd().try_clone_to_owned().map_err(|error| failed(&error))?;
            guest.vm.wake_while_readable(fd);
        }
        let exit = self.serve_started(&mut guest).map_err(|error| failed(&error))?;
        let _ = self.metrics.flush(json!({}));
        // Its end is the process's.
        std::mem::forget(guest);
        match exit {
            VmExit::PowerOff | VmExit::Reset => {
                self.log.line(Level::Info, &format!("the guest ended: {exit:?}"));
                Ok(EXIT_OK)
            }
            VmExit::Stopped => Ok(EXIT_STOPPED),
            VmExit::GuestFault { what } => {
                Err(End { code: EXIT_FAILED, message: format!("the guest cannot go on: {what}") })
            }
        }
    }

    /// Until a call makes a VM; `None` when the process is told to end first.
    fn serve_before_start(&mut self, signals: &StopSignals) -> Result<Option<Guest>, End> {
        loop {
            let Some(server) = &mut self.server else { return Ok(None) };
            if let Some(asked) = server.take() {
                let mut guest = None;
                let response = self.respond(&asked.request, Phase::BeforeStart, |instance, call| {
                    instance.call_before_start(call, &mut guest)
                });
                self.answer(asked.client, &response);
                if guest.is_some() {
                    return Ok(guest);
                }
                continue;
            }
            let fds = &mut [
                PollFd::from_borrowed_fd(server.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
            ];
            match poll(fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(&error)),
            }
            if !fds[1].revents().is_empty() {
                return Ok(None);
            }
        }
    }

    /// Until the guest ends.
    fn serve_started(&mut self, guest: &mut Guest) -> Result<VmExit, VmError> {
        loop {
            let mut first_run = None;
            let exit = guest.vm.turn(None, &mut |happening| {
                if let Happening::FirstRun { at_ns } = happening {
                    first_run = Some(at_ns);
                }
            })?;
            if let Some(at_ns) = first_run.filter(|_| self.boot_timer) {
                let us = at_ns.saturating_sub(guest.asked_at_ns) / 1000;
                self.log
                    .line(Level::Info, &format!("first guest instruction {us} us after it was asked for"));
            }
            if let Some(exit) = exit {
                return Ok(exit);
            }
            while let Some(asked) = self.server.as_mut().and_then(Server::take) {
                let response = self.respond(&asked.request, Phase::Started, |instance, call| {
                    instance.call_started(call, guest)
                });
                self.answer(asked.client, &response);
            }
        }
    }

    fn answer(&mut self, client: u64, response: &Response) {
        if let Some(server) = &mut self.server {
            server.answer(client, response);
        }
    }

    /// The answer to a request: what `act` says, if it may be called at all.
    fn respond(
        &mut self,
        request: &Request,
        phase: Phase,
        act: impl FnOnce(&mut Self, Call) -> Result<Response, Fault>,
    ) -> Response {
        let (method, path) = (request.method, request.path.as_str());
        self.log
            .line(Level::Info, &format!("The API server received a {} request on {path:?}.", method.name()));
        let routed = api_server::route(request);
        let deprecated = routed.as_ref().is_ok_and(|routed| routed.deprecated);
        let answer = routed.and_then(|routed| {
            routed.call.check(phase)?;
            act(self, routed.call)
        });
        self.metrics.count(method, path, answer.is_err());
        let response = answer.unwrap_or_else(|fault| {
            self.log.line(Level::Error, &format!("Received Error. Message: {fault}"));
            fault.into()
        });
        Response { deprecated, ..response }
    }

    fn metadata(&self) -> MutexGuard<'_, Metadata> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be asked at any time, but for the VM's state.
    pub fn call_anytime(&mut self, call: Call, state: VmState) -> Result<Response, Fault> {
        match call {
            Call::GetInstance => Ok(Response::data(&InstanceInfo {
                id: self.id.clone(),
                state,
                vmm_version: FIRECRACKER_VERSION.to_owned(),
                app_name: "Firecracker".to_owned(),
            })),
            Call::GetVersion => Ok(Response::data(&json!({ "firecracker_version": FIRECRACKER_VERSION }))),
            Call::GetConfig => Ok(Response::data(&self.resources.config())),
            Call::GetMachine => Ok(Response::data(self.resources.machine())),
            Call::GetMmds => Ok(Response::data(&self.metadata().value())),
            Call::PutMmds(value) => self.metadata().put(value).map(|()| Response::done()),
            Call::PatchMmds(value) => self.metadata().patch(&value).map(|()| Response::done()),
            // Every other call is one of the two phases' own.
            _ => Err(Fault::new("The requested operation is not supported.")),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> End {
    End { code: EXIT_FAILED, message: with_causes(error) }
}

/// A file of JSON that the command line names.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, End> {
    use std::io::Read as _;
    let end = |why: String| End {
        code: EXIT_CONFIGURATION,
        message: format!("cannot use {}: {why}", path.display()),
    };
    let file = std::fs::File::open(path).map_err(|error| end(error.to_string()))?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(|error| end(error.to_string()))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(end(format!("it has more than {MAX_CONFIG_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| end(error.to_string()))
}
