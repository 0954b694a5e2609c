//! From a configuration to a VM that is ready to run.
//!
//! KVM calls come in the order memory slots, irqchip, vCPUs, ioeventfds and irqfds: a memory slot after any
//! of the others costs milliseconds.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arch::cmdline::CmdlineError;
use arch::cpuid::{self, CpuidConfig};
use arch::initrd::{self, InitrdError};
use arch::kernel::{self, KernelError, LoadedKernel};
use arch::layout;
use devices::GuestRam;
use devices::held;
use devices::serial::SerialState;
use devices::virtio::transport::QUEUE_NOTIFY_OFFSET;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryError};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::machine::{DeviceError, Machine, Memory};
use crate::cmdline;
use crate::config::VmConfig;
use crate::emulation::Completer;
use crate::emulation::detect::{self, DetectError};
use crate::irq::{self, IrqError};
use crate::kvm::{self, KvmError};
use crate::memory::{self, MemoryError};
use crate::pmem::{self, PmemError};
use crate::report::Reporter;
use crate::template::TemplateError;
use crate::vcpu::{self, Vcpu, VcpuError};
use crate::worker::{Worker, WorkerError};

/// Why a VM could not be built.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says it")]
pub enum BuildError {
    #[error("{vcpus} vCPUs: from 1 to {} are possible", layout::MAX_VCPUS)]
    Vcpus { vcpus: u8 },
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("cannot create a VM")]
    CreateVm(#[source] errno::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Pmem(#[from] PmemError),
    #[error("cannot give KVM room for its task state segment")]
    TssAddress(#[source] errno::Error),
    #[error(transparent)]
    Irq(#[from] IrqError),
    #[error("cannot read the CPUID that KVM supports")]
    Cpuid(#[source] errno::Error),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Detect(#[from] DetectError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error("cannot open the kernel {}", path.display())]
    OpenKernel { path: PathBuf, source: io::Error },
    #[error("cannot boot {}", path.display())]
    Kernel { path: PathBuf, source: KernelError },
    #[error("cannot open the initrd {}", path.display())]
    OpenInitrd { path: PathBuf, source: io::Error },
    #[error("cannot use the initrd {}", path.display())]
    Initrd { path: PathBuf, source: InitrdError },
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    #[error("cannot write the boot data into guest memory")]
    BootData(#[from] GuestMemoryError),
    #[error("cannot register the notifications of {device} with KVM")]
    Notify { device: String, source: errno::Error },
    #[error("cannot install the signal handler that interrupts vCPUs")]
    KickHandler(#[source] errno::Error),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
}

/// Everything of a VM but its vCPU threads.
pub struct Parts {
    pub vm: Arc<VmFd>,
    pub memory: GuestRam,
    pub machine: Machine,
    pub vcpus: Vec<Vcpu>,
    /// CPUID of the first vCPU.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub emulated_ring0: bool,
}

/// Builds a VM with `memory` and reset vCPUs. Nothing is loaded into memory.
pub fn parts(
    config: &VmConfig,
    memory: GuestRam,
    reporter: &Reporter,
    console: Option<&SerialState>,
) -> Result<Parts, BuildError> {
    if config.vcpus == 0 || config.vcpus > layout::MAX_VCPUS {
        return Err(BuildError::Vcpus { vcpus: config.vcpus });
    }
    vcpu::install_kick_handler().map_err(BuildError::KickHandler)?;
    let kvm = kvm::open()?;
    let emulated_ring0 = detect::emulated_ring0(&kvm)?;
    let vm = Arc::new(kvm.create_vm().map_err(BuildError::CreateVm)?);
    let logging = config.restore.as_ref().is_some_and(|restore| restore.track);
    memory::register(&vm, &memory, logging)?;
    let windows = pmem::open(config)?;
    pmem::register(&vm, &windows, memory.num_regions())?;
    let addressable = pmem::with_ram(&memory, &windows)?;
    vm.set_tss_address(layout::KVM_TSS).map_err(BuildError::TssAddress)?;
    irq::create_split_irqchip(&vm)?;
    let seen = Memory { ram: &memory, addressable: &addressable, windows };
    let machine = Machine::build(config, &vm, seen, reporter, console)?;
    let template = &config.rare.cpu;
    template.check(&kvm)?;
    let mut cpuid = shaped_cpuid(&kvm, CpuidConfig { vcpus: config.vcpus, emulated_ring0 })?;
    template.shape(&mut cpuid)?;
    let vcpus = (0..config.vcpus)
        .map(|id| Vcpu::create(&vm, id, &cpuid, machine.buses.clone(), Completer::new(addressable.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    vcpus.iter().try_for_each(|vcpu| template.set_msrs(vcpu.fd()))?;
    connect(&vm, &machine)?;
    Ok(Parts { vm, memory, machine, vcpus, cpuid, emulated_ring0 })
}

fn shaped_cpuid(kvm: &Kvm, config: CpuidConfig) -> Result<Vec<kvm_cpuid_entry2>, BuildError> {
    let supported = kvm::supported_cpuid(kvm).map_err(BuildError::Cpuid)?;
    Ok(cpuid::shape(supported, config))
}

/// Registers every queue's ioeventfd and every device's irqfd.
fn connect(vm: &VmFd, machine: &Machine) -> Result<(), BuildError> {
    for (slot, device) in machine.slots.iter().enumerate() {
        let transport = &device.transport;
        let error = |source| BuildError::Notify { device: transport.name().to_owned(), source };
        let address = IoEventAddress::Mmio(layout::virtio_mmio_address(slot) + QUEUE_NOTIFY_OFFSET);
        // An empty slot's are registered when a device comes.
        let notifiers = if transport.is_empty() { &[] } else { transport.queue_notifiers() };
        for (queue, notifier) in notifiers.iter().enumerate() {
            vm.register_ioevent(notifier, &address, queue as u32).map_err(error)?;
        }
        vm.register_irqfd(transport.irq(), layout::virtio_mmio_gsi(slot)).map_err(error)?;
    }
    if let Some(keyboard) = &machine.keyboard {
        let error = |source| BuildError::Notify { device: "the keyboard".into(), source };
        vm.register_irqfd(keyboard.irq(), layout::KEYBOARD_GSI).map_err(error)?;
    }
    if let Some(console) = &machine.console {
        let error = |source| BuildError::Notify { device: "the serial port".into(), source };
        vm.register_irqfd(console.irq(), layout::SERIAL_GSI).map_err(error)?;
    }
    Ok(())
}

/// Loads kernel, initrd and boot data, and points the first vCPU at the kernel.
pub fn load(config: &VmConfig, parts: &Parts) -> Result<(), BuildError> {
    let memory = &memory::at_boot(&parts.memory, config.memory());
    let kernel = load_kernel(memory, &config.kernel.path)?;
    let initrd = match &config.kernel.initrd {
        Some(path) => Some(load_initrd(memory, path, &kernel)?),
        None => None,
    };
    let machine = cmdline::Machine {
        console: parts.machine.console.is_some(),
        bare: config.kernel.bare,
        emulated_ring0: parts.emulated_ring0,
        hotplug: config.rare.hotplug.is_some(),
        virtio_devices: parts.machine.slots.len() - config.untold_slots(),
    };
    let line = cmdline::build(machine, &config.kernel.cmdline);
    line.check(kernel.cmdline_max())?;
    line.write(memory)?;
    arch::boot_params::write(memory, &kernel, initrd, line.as_str().len())?;
    arch::mptable::write(memory, config.vcpus, &parts.machine.gsis())?;
    arch::page_tables::write(memory)?;
    for vcpu in &parts.vcpus {
        vcpu.set_boot_msrs()?;
    }
    if let Some(first) = parts.vcpus.first() {
        first.set_boot_state(kernel.entry)?;
    }
    Ok(())
}

/// How kernels and initrds are opened.
pub fn read_only() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

fn load_kernel(memory: &GuestRam, path: &Path) -> Result<LoadedKernel, BuildError> {
    let file = held::open(&read_only(), path)
        .map_err(|source| BuildError::OpenKernel { path: path.to_owned(), source })?;
    kernel::load(memory, &file).map_err(|source| BuildError::Kernel { path: path.to_owned(), source })
}

fn load_initrd(memory: &GuestRam, path: &Path, kernel: &LoadedKernel) -> Result<initrd::Initrd, BuildError> {
    let file = held::open(&read_only(), path)
        .map_err(|source| BuildError::OpenInitrd { path: path.to_owned(), source })?;
    initrd::load(memory, &file, kernel.end, kernel.initrd_limit())
        .map_err(|source| BuildError::Initrd { path: path.to_owned(), source })
}

/// An event loop that drives the devices of `machine` and returns when `wake` is signalled.
///
/// It polls only where a host CPU is left when every one of `vcpus` runs.
pub fn worker(machine: &Machine, wake: &EventFd, vcpus: u8) -> Result<Worker, BuildError> {
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |cpus| cpus.count());
    let mut worker = Worker::new(cpus > u32::from(vcpus))?;
    worker.wake_on(wake.try_clone().map_err(BuildError::EventFd)?);
    for slot in &machine.slots {
        let changed = slot.changed.try_clone().map_err(BuildError::EventFd)?;
        worker.attach(slot.transport.clone(), changed);
    }
    Ok(worker)
}
