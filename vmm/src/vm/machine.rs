//! The devices of a VM, built from its configuration and put on the buses.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::layout;
use devices::GuestRam;
use devices::bus::{Bus, BusDevice, BusError};
use devices::generation::{GENERATION_PORT, GENERATION_SIZE, Generation};
use devices::held;
use devices::i8042::{I8042, I8042_PORT};
use devices::ioapic::{IOAPIC_SIZE, Ioapic};
use devices::keyboard::{KEYBOARD_PORT, KEYBOARD_SIZE, Keyboard};
use devices::power::{POWER_PORT, PowerPort, PowerSink};
use devices::rate::{RateControl, RateLimiter};
use devices::serial::{ConsoleLog, SERIAL_PORT, SERIAL_SIZE, Serial, SerialError, SerialState};
use devices::virtio::balloon::{Balloon, BalloonControl};
use devices::virtio::block::{Block, BlockConfig, BlockError};
use devices::virtio::device::{ProtocolViolation, VirtioDevice};
use devices::virtio::fs::{Fs, MAX_TAG_BYTES};
use devices::virtio::mem::{Mem, MemControl, MemRegion};
use devices::virtio::net::stream::Stream;
use devices::virtio::net::tap::{Tap, TapError};
use devices::virtio::net::{Net, NetIdentity};
use devices::virtio::pmem;
use devices::virtio::rng::Rng;
use devices::virtio::transport::{MMIO_SIZE, MmioTransport, TransportObserver};
use devices::virtio::vsock::{Vsock, VsockError};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::spare;
use crate::config::{
    BucketConfig, DiskConfig, FsConfig, NetBackend, NetConfig, RateLimits, VmConfig, VmExit, disk_name,
};
use crate::exit::Buses;
use crate::irq::Router;
use crate::pmem::Pmem;
use crate::report::{Report, Reporter};

/// Slots that disks leave for the other devices.
const OTHER_DEVICES: usize = 3;
/// Most disks of one VM.
const MAX_DISKS: usize = layout::VIRTIO_MMIO_SLOTS - OTHER_DEVICES;

/// Why a device could not be built.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// More disks than the machine has slots.
    #[error("{count} disks: at most {MAX_DISKS} are possible")]
    TooManyDisks {
        /// Number asked for.
        count: usize,
    },
    /// More plugged devices than spare slots.
    #[error("{count} plugged devices: there are {spare} spare slots")]
    TooManyPlugged {
        /// Number asked for.
        count: usize,
        /// Spare slots of the configuration.
        spare: usize,
    },
    /// More devices and spare slots than the machine has slots.
    #[error("{count} virtio devices and spare slots: at most {} are possible", layout::VIRTIO_MMIO_SLOTS)]
    TooManySlots {
        /// Number asked for.
        count: usize,
    },
    /// A disk could not be opened.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The tag of a file system is too long.
    #[error("the file system's tag {tag:?} has more than {MAX_TAG_BYTES} bytes")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The descriptor of an interface or a file system is none.
    #[error("the TAP or socket descriptor {fd} cannot be used")]
    TapDescriptor {
        /// Its number.
        fd: RawFd,
        /// Why.
        source: io::Error,
    },
    /// The stream socket could not be set up.
    #[error("cannot use the stream socket of a network interface")]
    Stream(#[source] io::Error),
    /// The host gives no timer for the limits of a device.
    #[error("cannot make a timer for the limits of a device")]
    Timer(#[source] io::Error),
    /// The TAP interface could not be set up.
    #[error("cannot use the TAP interface")]
    Tap(#[from] TapError),
    /// The console log could not be opened.
    #[error("cannot open the console log {}", path.display())]
    OpenConsole {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The serial port could not be built.
    #[error("cannot build the serial port")]
    Serial(#[from] SerialError),
    /// The keyboard could not be built.
    #[error("cannot make an eventfd for the keyboard")]
    Keyboard(#[source] io::Error),
    /// The balloon could not be built.
    #[error("cannot make an eventfd or timer for the balloon")]
    Balloon(#[source] io::Error),
    /// The memory that can be plugged is no number of blocks.
    #[error(
        "{size_mib} MiB of memory in blocks of {block_mib} MiB: it takes a multiple of a block, which is a power of two"
    )]
    Hotplug {
        /// Of all of it.
        size_mib: u32,
        /// Of a block.
        block_mib: u32,
    },
    /// The vsock device could not be built.
    #[error("cannot build the vsock device")]
    Vsock(#[from] VsockError),
    /// An eventfd could not be made.
    #[error("cannot make an eventfd for {device}")]
    EventFd {
        /// The device's name.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// Two devices claim one address: a bug of the layout.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The serial port with its log.
pub type Console = Serial<ConsoleLog<Box<dyn io::Write + Send>>>;

/// One virtio device, its transport, and the event that says its host descriptors changed.
pub struct Slot {
    /// The device behind its registers.
    pub transport: Arc<MmioTransport>,
    /// For the event loop.
    pub changed: EventFd,
}

/// The guest's memory as its devices need it.
pub struct Memory<'a> {
    /// RAM.
    pub ram: &'a GuestRam,
    /// What descriptors may point to: RAM and the windows.
    pub addressable: &'a GuestRam,
    /// Persistent memory.
    pub windows: Vec<Pmem>,
}

/// All devices of a VM.
pub struct Machine {
    /// What vCPUs reach.
    pub buses: Arc<Buses>,
    /// The serial port, if the configuration has a console log.
    pub console: Option<Arc<Console>>,
    /// Tells a restored guest what changed.
    pub generation: Arc<Generation>,
    /// Virtio devices by slot.
    pub slots: Vec<Slot>,
    /// The balloon's, if the configuration has one.
    pub balloon: Option<BalloonControl>,
    /// Of the memory that can be plugged, if the configuration has some.
    pub hotplug: Option<MemControl>,
    /// By the names of the devices.
    pub rates: HashMap<String, RateControl>,
    /// The keyboard, if the configuration has one.
    pub keyboard: Option<Arc<Keyboard>>,
    /// Devices that came into spare slots while the VM ran: name and slot.
    pub plugged: Vec<(String, usize)>,
}

impl Machine {
    /// Builds every device of `config`, the console in the state `saved` if there is one. No KVM call is
    /// made, so this may come between the memory slots and the vCPUs.
    pub fn build(
        config: &VmConfig,
        vm: &Arc<VmFd>,
        memory: Memory<'_>,
        reporter: &Reporter,
        saved: Option<&SerialState>,
    ) -> Result<Self, DeviceError> {
        let router = Arc::new(Router::new(vm.clone()));
        let ioapic = Arc::new(Ioapic::new(router.clone()));
        let mut buses = Buses { pio: Bus::new(), mmio: Bus::new(), ioapic: ioapic.clone() };
        buses.mmio.insert(layout::IOAPIC_BASE, IOAPIC_SIZE, ioapic)?;

        let power = Arc::new(Power(reporter.clone()));
        let keyboard = config.keyboard.then(|| Keyboard::open(power.clone()).map(Arc::new)).transpose();
        let keyboard = keyboard.map_err(DeviceError::Keyboard)?;
        match &keyboard {
            Some(keyboard) => buses.pio.insert(KEYBOARD_PORT, KEYBOARD_SIZE, keyboard.clone())?,
            None => buses.pio.insert(I8042_PORT, 1, Arc::new(I8042::new(power.clone())))?,
        }
        buses.pio.insert(POWER_PORT, 1, Arc::new(PowerPort::new(power)))?;
        let generation = Arc::new(Generation::new());
        buses.pio.insert(GENERATION_PORT, GENERATION_SIZE, generation.clone())?;

        let rate = config.rare.console_rate.as_ref();
        let console = config.console_log.as_ref().map(|path| open_console(path, rate, saved)).transpose()?;
        if let Some(console) = &console {
            buses.pio.insert(SERIAL_PORT, SERIAL_SIZE, console.clone())?;
        }

        let balloon = config.balloon.then(|| balloon(config, memory.ram)).transpose();
        let balloon = balloon.map_err(DeviceError::Balloon)?;
        let control = balloon.as_ref().map(Balloon::control);
        let mem = hotplug(config, memory.ram)?;
        let hotplug = mem.as_ref().map(Mem::control);
        let devices = virtio_devices(config, memory.windows, balloon, mem)?;
        let rates = devices.iter().filter_map(|(name, device)| Some((name.clone(), device.rate_control()?)));
        let rates = rates.collect();
        let mut slots = Vec::with_capacity(devices.len());
        for (index, (name, device)) in devices.into_iter().enumerate() {
            let slot = Slot::new(name, device, memory.addressable, reporter)?;
            let registers: Arc<dyn BusDevice> = slot.transport.clone();
            buses.mmio.insert(layout::virtio_mmio_address(index), MMIO_SIZE, registers)?;
            slots.push(slot);
        }
        router.set_transports(slots.iter().map(|slot| slot.transport.clone()).collect());
        Ok(Machine {
            buses: Arc::new(buses),
            console,
            generation,
            slots,
            balloon: control,
            hotplug,
            rates,
            keyboard,
            plugged: Vec::new(),
        })
    }

    /// The slot of the device that the guest calls `name`.
    pub fn slot_of(&self, name: &str) -> Option<usize> {
        let plugged = self.plugged.iter().find(|(plugged, _)| plugged == name).map(|(_, slot)| *slot);
        let built = || {
            let named = |slot: &Slot| slot.transport.name() == name && !slot.transport.is_empty();
            self.slots.iter().position(named)
        };
        plugged.or_else(built)
    }

    /// IOAPIC pins that devices are wired to.
    pub fn gsis(&self) -> Vec<u32> {
        let serial = self.console.iter().map(|_| layout::SERIAL_GSI);
        let keyboard = self.keyboard.iter().map(|_| layout::KEYBOARD_GSI);
        keyboard.chain(serial).chain((0..self.slots.len()).map(layout::virtio_mmio_gsi)).collect()
    }
}

impl Slot {
    fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        memory: &GuestRam,
        reporter: &Reporter,
    ) -> Result<Self, DeviceError> {
        let error = |source| DeviceError::EventFd { device: name.clone(), source };
        let changed = EventFd::new(EFD_NONBLOCK).map_err(error)?;
        let observer = Observer {
            reporter: reporter.clone(),
            changed: changed.try_clone().map_err(error)?,
            ready: AtomicBool::new(false),
        };
        let transport =
            MmioTransport::new(name.clone(), device, memory.clone(), Arc::new(observer)).map_err(error)?;
        Ok(Slot { transport: Arc::new(transport), changed })
    }
}

/// A device and its name in the guest.
pub(super) type Named = (String, Box<dyn VirtioDevice>);

/// The virtio devices of `config` in slot order.
fn virtio_devices(
    config: &VmConfig,
    windows: Vec<Pmem>,
    balloon: Option<Balloon>,
    mem: Option<Mem>,
) -> Result<Vec<Named>, DeviceError> {
    let mut devices: Vec<Named> = Vec::with_capacity(config.disks.len() + 3);
    if config.disks.len() > MAX_DISKS {
        return Err(DeviceError::TooManyDisks { count: config.disks.len() });
    }
    for (index, config) in config.disks.iter().enumerate() {
        devices.push(disk(index, config)?);
    }
    for (number, config) in config.net.iter().enumerate() {
        devices.push(net(&format!("eth{number}"), config)?);
    }
    if let Some(vsock) = &config.vsock {
        devices.push(("vsock".into(), Box::new(Vsock::new(vsock.guest_cid, &vsock.uds_path)?)));
    }
    let rng = match &config.rare.entropy_limits {
        Some(limits) => Rng::limited(RateLimiter::new(limits).map_err(DeviceError::Timer)?),
        None => Rng::new(),
    };
    devices.push(("rng".into(), Box::new(rng)));
    let mut windows = windows.into_iter().enumerate();
    for (number, window) in windows.by_ref().take(config.pmem.len()) {
        devices.push(match config.rare.pmem_limits.get(number) {
            Some(limits) => limited_pmem(number, window, limits)?,
            None => pmem((number, window)),
        });
    }
    if let Some(balloon) = balloon {
        devices.push(("balloon".into(), Box::new(balloon)));
    }
    if let Some(mem) = mem {
        devices.push(("mem".into(), Box::new(mem)));
    }
    if let Some(config) = &config.fs {
        devices.push(("fs".into(), Box::new(fs(config)?)));
    }
    let count = devices.len() + usize::from(config.spare_slots);
    if count > layout::VIRTIO_MMIO_SLOTS {
        return Err(DeviceError::TooManySlots { count });
    }
    devices.extend(spare::devices(config, windows.map(pmem).collect())?);
    Ok(devices)
}

/// Disk `index` of the guest, `vda` and so on.
pub(super) fn disk(index: usize, config: &DiskConfig) -> Result<Named, DeviceError> {
    let DiskConfig { path, read_only, serial, engine, limits } = config.clone();
    let config = BlockConfig { path, read_only, serial, engine, limits };
    Ok((disk_name(index), Box::new(Block::open(&config)?)))
}

fn balloon(config: &VmConfig, ram: &GuestRam) -> io::Result<Balloon> {
    Balloon::with_options(ram.clone(), config.balloon_statistics_s, config.rare.balloon_hinting)
}

/// The device of the memory that can be plugged.
fn hotplug(config: &VmConfig, ram: &GuestRam) -> Result<Option<Mem>, DeviceError> {
    let (Some(hotplug), Some((address, size))) = (config.rare.hotplug, config.memory().hotplug_range())
    else {
        return Ok(None);
    };
    let block = u64::from(hotplug.block_mib) << 20;
    if !block.is_power_of_two() || !size.is_multiple_of(block) {
        return Err(DeviceError::Hotplug { size_mib: hotplug.size_mib, block_mib: hotplug.block_mib });
    }
    let mem = Mem::new(ram.clone(), MemRegion { address, size, block });
    mem.map(Some).map_err(|source| DeviceError::EventFd { device: "mem".into(), source })
}

/// Persistent memory `index` of the guest.
fn pmem((index, Pmem { file, window, .. }): (usize, Pmem)) -> Named {
    (format!("pmem{index}"), Box::new(pmem::Pmem::new(file, window)))
}

/// The same with limits, which can be changed.
fn limited_pmem(index: usize, pmem: Pmem, limits: &RateLimits) -> Result<Named, DeviceError> {
    let limiter = RateLimiter::new(limits).map_err(DeviceError::Timer)?;
    Ok((format!("pmem{index}"), Box::new(pmem::Pmem::limited(pmem.file, pmem.window, limiter))))
}

/// The network interface that the guest calls `name`.
pub(super) fn net(name: &str, config: &NetConfig) -> Result<Named, DeviceError> {
    let identity = NetIdentity { mac: config.mac, mtu: config.mtu };
    let fd = duplicate(config.fd)?;
    let limiter = RateLimiter::new(&config.limits).map_err(DeviceError::Timer)?;
    let device: Box<dyn VirtioDevice> = match config.backend {
        NetBackend::Tap => {
            let tap = Tap::from_fd(fd)?;
            match &config.service {
                Some(service) => service.on_tap(tap, identity, limiter),
                None => Box::new(Net::new(tap, identity, limiter)),
            }
        }
        NetBackend::Stream => {
            let stream = Stream::from_fd(fd).map_err(DeviceError::Stream)?;
            match &config.service {
                Some(service) => service.on_stream(stream, identity, limiter),
                None => Box::new(Net::new(stream, identity, limiter)),
            }
        }
    };
    Ok((name.into(), device))
}

/// The file system device.
fn fs(config: &FsConfig) -> Result<Fs, DeviceError> {
    if config.tag.len() > MAX_TAG_BYTES {
        return Err(DeviceError::Tag { tag: config.tag.clone() });
    }
    Ok(Fs::new(&config.tag, config.fd.map(duplicate).transpose()?))
}

/// A descriptor of our own for what the configuration names by number.
fn duplicate(fd: RawFd) -> Result<OwnedFd, DeviceError> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor or fails; it changes nothing of the old one.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if new < 0 {
        return Err(DeviceError::TapDescriptor { fd, source: io::Error::last_os_error() });
    }
    // SAFETY: the call just made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// How the console's log is opened.
pub fn console_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Never waited for: a FIFO or terminal that is full loses output. Opened for reading too, as a FIFO without
    // a reader does not open for writing alone.
    options.create(true).read(true).append(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
    options
}

fn open_console(
    path: &Path,
    rate: Option<&BucketConfig>,
    saved: Option<&SerialState>,
) -> Result<Arc<Console>, DeviceError> {
    let file = held::open(&console_options(), path)
        .or_else(|error| standard_output(path).ok_or(error))
        .map_err(|source| DeviceError::OpenConsole { path: path.to_owned(), source })?;
    let out: Box<dyn io::Write + Send> = Box::new(file);
    let log = match rate {
        Some(rate) => ConsoleLog::at_rate(out, rate),
        None => ConsoleLog::new(out),
    };
    Ok(Arc::new(match saved {
        Some(state) => Serial::restore(state, log)?,
        None => Serial::open(log)?,
    }))
}

/// Standard output that cannot be opened anew: a socket, or a file of another user.
fn standard_output(path: &Path) -> Option<File> {
    let own = (path == Path::new("/dev/stdout")).then(|| io::stdout().as_fd().try_clone_to_owned().ok())?;
    own.map(File::from)
}

/// Carries the guest's wish to end to the owner of the VM.
struct Power(Reporter);

impl PowerSink for Power {
    fn power_off(&self) {
        self.0.exit(VmExit::PowerOff);
    }

    fn reset(&self) {
        self.0.exit(VmExit::Reset);
    }
}

/// Carries what happens on one transport to the owner of the VM.
struct Observer {
    reporter: Reporter,
    changed: EventFd,
    /// Reported already: a guest that resets its device for ever makes one report.
    ready: AtomicBool,
}

impl TransportObserver for Observer {
    fn driver_ready(&self, device: &str) {
        if !self.ready.swap(true, Ordering::Relaxed) {
            self.reporter.send(Report::DriverReady { device: device.to_owned() });
        }
    }

    fn host_events_changed(&self, _: &str) {
        // Fails only when it is signalled already.
        let _ = self.changed.write(1);
    }

    fn protocol_violation(&self, device: &str, violation: &ProtocolViolation, count: u64) {
        eprintln!("lighter-vmm: {device}: {violation} (violation {count} of this device)");
    }

    fn host_failure(&self, device: &str, what: &str, count: u64) {
        eprintln!("lighter-vmm: {device}: {what} (failure {count} of the host at this device)");
    }
}
