//! One virtual machine: the only owner of its vCPU threads, devices and event loop.
//!
//! ```text
//!  build ──► Ready ──start──► Running ──pause──► Paused ──save_state──► Paused
//!  restore ──►                   ▲─────resume──────┘
//!                                └──run──► ended: VmExit
//! ```
//!
//! Pausing stops the vCPUs first, then the devices, which are driven by this thread and so stand still as
//! soon as it does not run the loop. Resuming goes the other way.

mod build;
mod generation;
mod machine;
mod plugging;
mod requests;
mod saving;
mod snapshot;
mod spare;
mod state;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::serial::SerialState;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::mem::MemControl;
use kvm_bindings::kvm_cpuid_entry2;

pub use self::build::{BuildError, read_only as kernel_options};
pub use self::generation::RenewError;
pub use self::machine::{DeviceError, console_options};
pub use self::saving::{SaveOrder, SnapshotFiles};
pub use self::snapshot::SnapshotError;
pub use self::state::{RestoreVmError, SaveError, VmState};
use crate::config::{VmConfig, VmExit};
use crate::dirty::DirtyLog;
use crate::memory;
use crate::report::{self, Report, Reporter, Reports};
use crate::seccomp::Filters;
use crate::stop::StopSignals;
use crate::vcpu::{Vcpu, VcpuHandle, VcpuThreadError};
use crate::vm::generation::Stood;
use crate::vm::machine::Machine;
use crate::vm::saving::{Saving, SharedLog};
use crate::worker::{Worker, WorkerError};

/// A guest need not know of a pause that is no longer.
pub const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// A request that the VM's state does not allow.
#[derive(Debug, thiserror::Error)]
#[error("cannot {request} a VM that is {state}")]
pub struct WrongState {
    /// What was asked for.
    pub request: &'static str,
    /// The state it is in.
    pub state: &'static str,
}

/// Why a running VM could not go on being run, paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The request does not fit the state.
    #[error(transparent)]
    State(#[from] WrongState),
    /// A vCPU thread failed.
    #[error(transparent)]
    Vcpu(#[from] VcpuThreadError),
    /// A restored guest could not be told.
    #[error(transparent)]
    Renew(#[from] RenewError),
    /// The event loop failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The filter of this thread could not be installed.
    #[error("cannot limit the system calls of the event loop")]
    Filter(#[source] std::io::Error),
}

/// vCPUs with or without threads.
enum Vcpus {
    /// No thread yet.
    Ready(Vec<Vcpu>),
    /// In the guest.
    Running(Vec<VcpuHandle>),
    /// Out of the guest.
    Paused(Vec<VcpuHandle>),
}

impl Vcpus {
    fn state(&self) -> &'static str {
        match self {
            Vcpus::Ready(_) => "not started",
            Vcpus::Running(_) => "running",
            Vcpus::Paused(_) => "paused",
        }
    }

    fn refuse(&self, request: &'static str) -> WrongState {
        WrongState { request, state: self.state() }
    }
}

/// A virtual machine.
pub struct Vm {
    // Dropped in this order: threads end before the devices, the memory and the VM that they use.
    vcpus: Vcpus,
    worker: Worker,
    config: VmConfig,
    cpuid: Vec<kvm_cpuid_entry2>,
    machine: Machine,
    reporter: Reporter,
    reports: Reports,
    vm: Arc<kvm_ioctls::VmFd>,
    memory: GuestRam,
    emulated_ring0: bool,
    /// Which pages are dirty; off unless somebody wants differential snapshots.
    log: SharedLog,
    /// A snapshot that is being written.
    saving: Option<Saving>,
    /// When the vCPUs of a paused VM left the guest.
    paused_at: Option<Instant>,
    /// Of a restored VM that has not run yet.
    stood: Option<Stood>,
    ended: Option<VmExit>,
    /// What its threads may do.
    filters: Option<&'static Filters>,
}

impl Vm {
    /// Limits the system calls of this VM's threads, this one among them, from its start on.
    pub fn limit_calls(&mut self, filters: &'static Filters) {
        self.filters = Some(filters);
    }

    /// Builds the VM of `config` with its kernel loaded. No thread is started.
    pub fn build(config: &VmConfig) -> Result<Self, BuildError> {
        let memory = memory::allocate(config.memory())?;
        Self::assemble(config, memory, None, |parts| build::load(config, parts))
    }

    /// Builds the VM of `config` around `memory`, which holds what it held when `state` was saved.
    pub fn restore(config: &VmConfig, state: &VmState, memory: GuestRam) -> Result<Self, RestoreVmError> {
        let mut vm = Self::assemble(config, memory, state.console(), |_| Ok(()))?;
        vm.resume_from(state)?;
        Ok(vm)
    }

    /// Loads `state`; the guest is told of it when it starts.
    fn resume_from(&mut self, state: &VmState) -> Result<(), RestoreVmError> {
        self.load_state(state)?;
        self.stood = Some(state.stood());
        Ok(())
    }

    fn assemble(
        config: &VmConfig,
        memory: GuestRam,
        console: Option<&SerialState>,
        load: impl FnOnce(&build::Parts) -> Result<(), BuildError>,
    ) -> Result<Self, BuildError> {
        let (reporter, reports) = report::channel().map_err(BuildError::EventFd)?;
        let parts = build::parts(config, memory, &reporter, console)?;
        load(&parts)?;
        let worker = build::worker(&parts.machine, reports.wake(), config.vcpus)?;
        let log = DirtyLog::new(parts.vm.clone(), parts.memory.clone(), None);
        Ok(Vm {
            vcpus: Vcpus::Ready(parts.vcpus),
            worker,
            config: config.clone(),
            cpuid: parts.cpuid,
            machine: parts.machine,
            reporter,
            reports,
            vm: parts.vm,
            memory: parts.memory,
            emulated_ring0: parts.emulated_ring0,
            log: Arc::new(Mutex::new(log)),
            saving: None,
            paused_at: None,
            stood: None,
            ended: None,
            filters: None,
        })
    }

    /// Enters the guest, for the first time or for the first time after a restore.
    pub fn start(&mut self) -> Result<(), VmError> {
        let Vcpus::Ready(vcpus) = &mut self.vcpus else {
            return Err(self.vcpus.refuse("start").into());
        };
        if let Some(stood) = self.stood.take() {
            let count = vcpus.len() as u32;
            let step_ms = self.config.restore.as_ref().map_or(0, |restore| restore.step_ms);
            let tsc = || vcpus.first().map_or(Ok(0), Vcpu::tsc).map_err(RenewError::Tsc);
            let generation = &self.machine.generation;
            generation::renew(&self.vm, &self.memory, generation, count, &stood, step_ms, tsc)?;
        }
        let vcpus = std::mem::take(vcpus);
        let handles = vcpus
            .into_iter()
            .map(|vcpu| VcpuHandle::start(vcpu, self.reporter.clone(), self.filters.map(|of| of.vcpu)))
            .collect::<Result<Vec<_>, _>>()?;
        // After the threads are made, which have filters of their own, and before the guest runs.
        if let Some(filters) = self.filters {
            filters.install_worker().map_err(VmError::Filter)?;
        }
        #[cfg(feature = "compromised")]
        crate::compromised::act("worker");
        handles.iter().try_for_each(VcpuHandle::begin)?;
        self.vcpus = Vcpus::Running(handles);
        Ok(())
    }

    /// Takes every vCPU out of the guest, lets the devices finish what they began and then rest. Afterwards
    /// nothing changes the guest's memory.
    pub fn pause(&mut self) -> Result<(), VmError> {
        let Vcpus::Running(handles) = &mut self.vcpus else {
            return Err(self.vcpus.refuse("pause").into());
        };
        // All are told before the first is waited for.
        let leaving = handles.iter().map(VcpuHandle::pause).collect::<Result<Vec<_>, _>>()?;
        for left in leaving {
            // A thread that ended is out of the guest as well.
            let _ = left.recv();
        }
        self.vcpus = Vcpus::Paused(std::mem::take(handles));
        self.paused_at = Some(Instant::now());
        self.worker.rest_devices();
        for slot in &self.machine.slots {
            slot.transport.quiesce();
        }
        Ok(())
    }

    /// Lets a paused VM go on. After more than [`SHORT_PAUSE`] its guest is told as after a restore, so that its
    /// timers do not fire all at once.
    pub fn resume(&mut self) -> Result<(), VmError> {
        let Vcpus::Paused(handles) = &mut self.vcpus else {
            return Err(self.vcpus.refuse("resume").into());
        };
        let paused = self.paused_at.take().map_or(Duration::ZERO, |at| at.elapsed());
        if let Some(first) = handles.first().filter(|_| paused > SHORT_PAUSE) {
            let (tsc, khz) = first.tsc()?;
            let stood = Stood::at_pause(&self.vm, tsc, khz, paused)?;
            let (count, generation) = (handles.len() as u32, &self.machine.generation);
            let tsc = || Ok(first.tsc()?.0);
            generation::renew(&self.vm, &self.memory, generation, count, &stood, 0, tsc)?;
        }
        self.worker.wake_devices();
        for handle in handles.iter() {
            handle.resume()?;
        }
        self.vcpus = Vcpus::Running(std::mem::take(handles));
        Ok(())
    }

    /// Drives the devices until the guest ends; tells `observe` what happens meanwhile.
    pub fn run(&mut self, mut observe: impl FnMut(Happening)) -> Result<VmExit, VmError> {
        loop {
            if let Some(exit) = self.turn(None, &mut observe)? {
                return Ok(exit);
            }
        }
    }

    /// Drives the devices for `duration`, or until the guest ends.
    pub fn run_for(
        &mut self,
        duration: Duration,
        mut observe: impl FnMut(Happening),
    ) -> Result<Option<VmExit>, VmError> {
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let exit = self.turn(Some(left), &mut observe)?;
            if exit.is_some() || left.is_zero() {
                return Ok(exit);
            }
        }
    }

    /// One turn of the event loop, at most `timeout` long.
    pub(crate) fn turn(
        &mut self,
        timeout: Option<Duration>,
        observe: &mut impl FnMut(Happening),
    ) -> Result<Option<VmExit>, VmError> {
        if self.ended.is_none() {
            // Rounded up, so that a rest below a millisecond does not spin.
            let timeout_ms = timeout.map_or(-1, |left| left.as_micros().div_ceil(1000).min(60_000) as i32);
            self.worker.run(timeout_ms)?;
        }
        while let Some(report) = self.reports.next() {
            match report {
                Report::FirstRun { at_ns } => observe(Happening::FirstRun { at_ns }),
                Report::DriverReady { device } => observe(Happening::DriverReady { device }),
                Report::Asked(asked) => self.serve(asked),
                Report::Copied => self.saver_copied(),
                Report::Saved(result) => self.saver_done(result),
                Report::Exit(exit) => self.ended = Some(exit),
            }
        }
        Ok(self.ended.clone())
    }

    /// Makes [`Vm::turn`] return while `fd` is readable.
    pub(crate) fn wake_while_readable(&mut self, fd: OwnedFd) {
        self.worker.wake_while_readable(fd);
    }

    /// Ends the VM with [`VmExit::Stopped`] when one of `signals` comes while it runs.
    pub fn stop_on(&mut self, signals: StopSignals) {
        self.worker.subscribe(Box::new(signals.subscriber(self.reporter.clone())));
    }

    /// What steers the balloon, if there is one; usable from any thread while the VM runs.
    pub fn balloon(&self) -> Option<&BalloonControl> {
        self.machine.balloon.as_ref()
    }

    /// What steers the memory that can be plugged, if there is some; usable from any thread while the VM runs.
    pub fn hotplug(&self) -> Option<&MemControl> {
        self.machine.hotplug.as_ref()
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// True where this host's KVM emulates guest ring 0.
    pub fn emulated_ring0(&self) -> bool {
        self.emulated_ring0
    }
}

/// What happens while a VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The first vCPU enters the guest; CLOCK_MONOTONIC nanoseconds.
    FirstRun {
        /// When.
        at_ns: u64,
    },
    /// A device's driver is ready, for the first time.
    DriverReady {
        /// The device's name in the guest.
        device: String,
    },
}
