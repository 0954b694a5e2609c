//! The MMIO transport, version 2 (virtio 1.2, section 4.2): registers, negotiation, interrupt, one device.
//!
//! ```text
//! driver ─ registers ─► vCPU thread ─ BusDevice ─► lock ─► DriverState ─► VirtioDevice
//! driver ─ notify ────► ioeventfd ─► event loop ─ process_queue ─► lock ─► VirtioDevice
//! device ─ Interrupt ─► irqfd, without the lock
//! ```
//!
//! The guest controls each register and all of the rings. What it does wrong sets DEVICE_NEEDS_RESET on
//! this device, is counted and reported with a limit, and harms nothing else.

mod driver_state;
mod line;
mod plugging;
mod polling;
mod registers;
mod saved;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use self::driver_state::{DriverState, NEEDS_RESET, Transition};
use self::line::Lines;
pub use self::plugging::{PLUGGED_QUEUES, PlugError};
use self::registers::{CONFIG_OFFSET, MAGIC, Register, VENDOR, VERSION};
pub use self::registers::{MMIO_SIZE, QUEUE_NOTIFY_OFFSET};
use super::device::{Activation, HostEvent, Interrupt, ProtocolViolation, VirtioDevice};
use crate::GuestRam;
use crate::bus::BusDevice;
use crate::virtio::placeholder;

/// Hears what happens on a transport. Called under the transport's lock, by any thread: an implementation
/// must not block and must not call the transport.
pub trait TransportObserver: Send + Sync {
    /// The driver of `device` set DRIVER_OK and the device is active.
    fn driver_ready(&self, device: &str);
    /// The descriptors to poll may have changed: the event loop should call
    /// [`MmioTransport::take_host_events`] soon.
    fn host_events_changed(&self, device: &str);
    /// The driver broke the protocol for the `count`th time. Called for counts that are powers of two
    /// only, so a guest that does nothing else cannot flood a log.
    fn protocol_violation(&self, device: &str, violation: &ProtocolViolation, count: u64);
    /// The host failed at something that the device had to do, for the `count`th time: a full disk, for
    /// example. Called for powers of two only, as above.
    fn host_failure(&self, device: &str, what: &str, count: u64);
}

/// One virtio device behind its registers.
pub struct MmioTransport {
    /// What the user calls the device, for example `vda`.
    name: String,
    mem: GuestRam,
    lines: Arc<Lines>,
    observer: Arc<dyn TransportObserver>,
    violations: AtomicU64,
    host_failures: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    driver: DriverState,
    device: Box<dyn VirtioDevice>,
    /// Set when the device became active or ceased to be: its descriptors have to be asked for again.
    activity_changed: bool,
}

impl MmioTransport {
    /// Puts `device` behind registers. Opens one eventfd per queue, those of a device that may come for an empty
    /// slot, and one for the interrupt.
    pub fn new(
        name: impl Into<String>,
        device: Box<dyn VirtioDevice>,
        mem: GuestRam,
        observer: Arc<dyn TransportObserver>,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let empty = device.device_id() == placeholder::DEVICE_ID;
        Ok(Self {
            name: name.into(),
            mem,
            lines: Arc::new(Lines::open(if empty { PLUGGED_QUEUES } else { sizes.len() })?),
            observer,
            violations: AtomicU64::new(0),
            host_failures: AtomicU64::new(0),
            inner: Mutex::new(Inner { driver: DriverState::new(sizes), device, activity_changed: false }),
        })
    }

    /// What the user calls the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Device ID (virtio 1.2, section 5).
    pub fn device_id(&self) -> u32 {
        self.lock().device.device_id()
    }

    /// Signalled for each interrupt: to be registered as irqfd.
    pub fn irq(&self) -> &EventFd {
        self.lines.irq()
    }

    /// One per queue in index order: to be registered as ioeventfd at [`QUEUE_NOTIFY_OFFSET`], four bytes
    /// wide, with the index as datamatch. The event loop reads it and calls
    /// [`MmioTransport::process_queue`]; a write that reaches the bus instead signals it too.
    pub fn queue_notifiers(&self) -> &[EventFd] {
        self.lines.queues()
    }

    /// How often the driver broke the protocol.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// How many calls of the device met a failure of the host.
    pub fn host_failures(&self) -> u64 {
        self.host_failures.load(Ordering::Relaxed)
    }

    /// Raises the interrupt again if the driver has not acknowledged it: for a level-triggered pin, at
    /// the end of interrupt.
    pub fn reassert_interrupt(&self) {
        self.lines.reassert();
    }

    /// Lets the device work on queue `index`. Does nothing while it is not active.
    pub fn process_queue(&self, index: u16) {
        self.process(|device| device.process_queue(index));
    }

    /// Tells the device that one of its descriptors is ready. Does nothing while it is not active.
    pub fn process_host_event(&self, token: u32, events: EventSet) {
        self.process(|device| device.process_host_event(token, events));
    }

    /// Puts the file `path` in place of the device's medium and tells the driver that its configuration changed.
    pub fn change_medium(&self, path: &Path) -> Result<(), String> {
        let mut inner = self.lock();
        inner.device.change_medium(path)?;
        if inner.driver.is_active() {
            self.activity_changed(&mut inner);
            self.lines.notify_config();
        }
        Ok(())
    }

    /// All descriptors to poll from now on, if they may differ from the last answer; none while the
    /// device is not active.
    pub fn take_host_events(&self) -> Option<Vec<HostEvent>> {
        let mut inner = self.lock();
        let changed = inner.device.host_events_changed();
        if !std::mem::take(&mut inner.activity_changed) && !changed {
            return None;
        }
        Some(if inner.driver.is_active() { inner.device.host_events() } else { Vec::new() })
    }

    fn process(&self, work: impl FnOnce(&mut dyn VirtioDevice) -> Result<(), ProtocolViolation>) {
        let mut inner = self.lock();
        if !inner.driver.is_active() {
            return;
        }
        let result = work(inner.device.as_mut());
        if let Some(what) = inner.device.take_host_failure() {
            let count = self.host_failures.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if count.is_power_of_two() {
                self.observer.host_failure(&self.name, &what, count);
            }
        }
        if let Err(violation) = result {
            self.violated(&mut inner, &violation);
        }
    }

    fn write_status(&self, value: u32) {
        let mut inner = self.lock();
        let offered = inner.device.features();
        match inner.driver.write_status(value, offered) {
            Transition::None => {}
            Transition::Stop => self.stop_device(&mut inner),
            Transition::Reset => {
                self.stop_device(&mut inner);
                inner.driver = DriverState::new(inner.device.queue_sizes());
                self.lines.reset();
            }
            Transition::Activate => match self.build_queues(&inner) {
                Ok(queues) => {
                    self.activate(&mut inner, queues);
                    self.observer.driver_ready(&self.name);
                }
                Err(violation) => self.violated(&mut inner, &violation),
            },
        }
    }

    /// The device's queues as the driver set them up, each one that is ready checked to be in memory.
    fn build_queues(&self, inner: &Inner) -> Result<Vec<Queue>, ProtocolViolation> {
        let features = inner.driver.driver_features;
        (0..)
            .zip(inner.device.queue_sizes().iter().zip(&inner.driver.queues))
            .map(|(queue, (&max_size, setup))| {
                let violation = |what| ProtocolViolation { queue, what };
                let built =
                    setup.build(max_size, features).map_err(|source| violation(source.to_string()))?;
                if built.ready() && (built.avail_ring() == 0 || !built.is_valid(&self.mem)) {
                    return Err(violation(format!("rings outside guest memory: {setup:x?}")));
                }
                Ok(built)
            })
            .collect()
    }

    fn activate(&self, inner: &mut Inner, queues: Vec<Queue>) {
        let activation = Activation {
            mem: self.mem.clone(),
            queues,
            acknowledged_features: inner.driver.driver_features,
            interrupt: Arc::clone(&self.lines) as Arc<dyn Interrupt>,
        };
        inner.device.activate(activation);
        self.activity_changed(inner);
    }

    fn violated(&self, inner: &mut Inner, violation: &ProtocolViolation) {
        inner.driver.status |= NEEDS_RESET;
        let count = self.violations.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count.is_power_of_two() {
            self.observer.protocol_violation(&self.name, violation, count);
        }
        self.stop_device(inner);
        self.lines.notify_config();
    }

    /// Takes the queues away from the device, so that it cannot touch guest memory any more.
    fn stop_device(&self, inner: &mut Inner) {
        inner.device.reset();
        self.activity_changed(inner);
    }

    fn activity_changed(&self, inner: &mut Inner) {
        inner.activity_changed = true;
        self.observer.host_events_changed(&self.name);
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::VendorId => VENDOR,
            Register::InterruptStatus => self.lines.status(),
            Register::ConfigGeneration => self.lines.generation(),
            // No shared memory region exists (section 4.2.2.1): length and base read as all ones.
            Register::SharedMemoryLength | Register::SharedMemoryBase => u32::MAX,
            Register::DeviceId => self.lock().device.device_id(),
            Register::DeviceFeatures => {
                let inner = self.lock();
                half(inner.device.features(), inner.driver.device_features_sel)
            }
            Register::QueueNumMax => {
                let inner = self.lock();
                let sizes = inner.device.queue_sizes();
                let index = usize::try_from(inner.driver.queue_sel).ok();
                index.and_then(|index| sizes.get(index)).map_or(0, |&size| size.into())
            }
            Register::QueueReady => {
                let ready = self.lock().driver.queue().is_some_and(|queue| queue.ready);
                ready.into()
            }
            Register::Status => self.lock().driver.status,
            _ => 0,
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        match register {
            Register::QueueNotify => self.lines.notify_queue(value),
            Register::InterruptAck => self.lines.acknowledge(value),
            Register::Status => self.write_status(value),
            Register::DeviceFeaturesSel => self.lock().driver.device_features_sel = value,
            Register::DriverFeaturesSel => self.lock().driver.driver_features_sel = value,
            Register::DriverFeatures => self.lock().driver.write_driver_features(value),
            Register::QueueSel => self.lock().driver.queue_sel = value,
            Register::QueueNum => self.lock().driver.write_queue_num(value),
            Register::QueueReady => self.lock().driver.write_queue_ready(value),
            Register::QueueAddress(area, half) => {
                self.lock().driver.write_queue_address(area, half, value);
            }
            _ => {}
        }
    }

    /// A panic with the lock held aborts the process in a release build; a test goes on with what is there.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers are 32 bits wide and accessed as such (section 4.2.2.2): other accesses read as zero and
/// write nothing. The configuration space takes any width.
impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            self.lock().device.read_config(offset, data);
        } else if let (Some(register), Ok(word)) = (Register::at(offset), <&mut [u8; 4]>::try_from(data)) {
            *word = self.read_register(register).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            let mut inner = self.lock();
            inner.device.write_config(offset, data);
        } else if let (Some(register), Ok(word)) = (Register::at(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(word));
        }
    }
}

/// Word `selector` of the feature bits; words past the second are zero.
fn half(features: u64, selector: u32) -> u32 {
    let shift = selector.saturating_mul(32);
    let word = features.checked_shr(shift).unwrap_or(0) & 0xffff_ffff;
    u32::try_from(word).unwrap_or(0)
}
