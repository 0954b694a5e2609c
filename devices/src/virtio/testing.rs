//! A virtio driver in miniature, for tests: it talks to a device through the MMIO registers as Linux does.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::sync::{Arc, Mutex};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::device::{ProtocolViolation, VirtioDevice};
pub use super::fake_queue::{Buffer, CountingInterrupt, FakeQueue, guest_ram};
use super::transport::{MmioTransport, TransportObserver};
use crate::GuestRam;
use crate::bus::BusDevice;

/// Offsets of registers (virtio 1.2, section 4.2.2).
pub mod register {
    #![allow(missing_docs)]
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const SHARED_MEMORY_LEN_LOW: u64 = 0x0b0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the Status register.
pub mod status {
    #![allow(missing_docs)]
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// VIRTIO_F_VERSION_1 as a mask.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_EVENT_IDX as a mask.
pub const EVENT_IDX: u64 = 1 << 29;

/// Bytes between the queues of a [`FakeDriver`], and where the first one is.
const QUEUE_SPACING: u64 = 0x1_0000;
/// Guest memory of a [`FakeDriver`]; what is past 1 MiB is free for buffers.
const MEM_SIZE: usize = 8 << 20;
/// First address that no queue uses.
pub const BUFFERS: u64 = 0x10_0000;

/// Notes what a transport reports.
#[derive(Debug, Default)]
pub struct Observed(Mutex<Vec<String>>);

impl Observed {
    /// What was reported since the last call, in words.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }
}

impl TransportObserver for Observed {
    fn driver_ready(&self, device: &str) {
        self.note(format!("{device}: ready"));
    }

    fn host_events_changed(&self, device: &str) {
        self.note(format!("{device}: host events"));
    }

    fn protocol_violation(&self, device: &str, violation: &ProtocolViolation, count: u64) {
        self.note(format!("{device}: violation {count}: {violation}"));
    }

    fn host_failure(&self, device: &str, what: &str, count: u64) {
        self.note(format!("{device}: host failure {count}: {what}"));
    }
}

/// A driver and its device.
pub struct FakeDriver {
    /// The device's transport.
    pub transport: Arc<MmioTransport>,
    /// Guest memory.
    pub mem: GuestRam,
    sizes: Vec<u16>,
    /// The driver's side of each queue.
    pub queues: Vec<FakeQueue>,
    /// What the transport reported.
    pub observed: Arc<Observed>,
}

impl FakeDriver {
    /// Puts `device` behind a transport called `test`. No register is touched yet.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with_mem(device, guest_ram(MEM_SIZE))
    }

    /// The same in guest memory that is there already: for a device restored from a snapshot.
    pub fn with_mem(device: impl VirtioDevice + 'static, mem: GuestRam) -> Self {
        Self::boxed(Box::new(device), mem)
    }

    /// The same for a device whose type nobody knows.
    pub fn boxed(device: Box<dyn VirtioDevice>, mem: GuestRam) -> Self {
        let observed = Arc::new(Observed::default());
        let sizes = device.queue_sizes().to_vec();
        let transport =
            MmioTransport::new("test", device, mem.clone(), Arc::clone(&observed) as Arc<_>).unwrap();
        let queues = queues(&mem, &sizes);
        Self { transport: Arc::new(transport), mem, sizes, queues, observed }
    }

    /// A driver that has set up everything and accepted those of `features` that are offered.
    pub fn start(device: impl VirtioDevice + 'static, features: u64) -> Self {
        let mut driver = Self::new(device);
        driver.initialize(features);
        assert_eq!(driver.read(register::STATUS), 0xf);
        driver
    }

    /// Resets the device, goes through the steps of virtio 1.2, section 3.1.1, with empty queues, and
    /// returns the status.
    pub fn initialize(&mut self, features: u64) -> u32 {
        self.write(register::STATUS, 0);
        let len = usize::try_from(QUEUE_SPACING).unwrap() * self.queues.len();
        self.fill(QUEUE_SPACING, &vec![0; len]);
        self.queues = queues(&self.mem, &self.sizes);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        self.accept(self.offered() & (features | VERSION_1));
        self.add_status(status::FEATURES_OK);
        for index in 0..self.queues.len() {
            self.set_up_queue(index);
        }
        self.add_status(status::DRIVER_OK);
        self.read(register::STATUS)
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let word = |selector| {
            self.write(register::DEVICE_FEATURES_SEL, selector);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        word(0) | (word(1) << 32)
    }

    /// Writes the accepted features.
    pub fn accept(&self, features: u64) {
        for (selector, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(register::DRIVER_FEATURES_SEL, selector);
            self.write(register::DRIVER_FEATURES, word);
        }
    }

    /// Sets one bit of the status.
    pub fn add_status(&self, bit: u32) {
        self.write(register::STATUS, self.read(register::STATUS) | bit);
    }

    /// Tells the device where queue `index` is.
    pub fn set_up_queue(&self, index: usize) {
        let queue = self.queues.get(index).unwrap().to_queue(false);
        self.write(register::QUEUE_SEL, index as u32);
        self.write(register::QUEUE_NUM, queue.size().into());
        self.write_address(register::QUEUE_DESC_LOW, queue.desc_table());
        self.write_address(register::QUEUE_DRIVER_LOW, queue.avail_ring());
        self.write_address(register::QUEUE_DEVICE_LOW, queue.used_ring());
        self.write(register::QUEUE_READY, 1);
    }

    /// Makes a chain of `buffers` available on queue `index`, notifies and lets the event loop run.
    pub fn submit(&mut self, index: u16, buffers: &[Buffer]) -> u16 {
        let head = self.queues.get_mut(usize::from(index)).unwrap().add(buffers);
        self.notify(index);
        head
    }

    /// Notifies queue `index` and does what the event loop does, until nothing is left to do.
    pub fn notify(&self, index: u16) {
        self.write(register::QUEUE_NOTIFY, index.into());
        self.run();
    }

    /// Does what the event loop does with notifications, until there are none.
    pub fn run(&self) {
        while (0..)
            .zip(self.transport.queue_notifiers())
            .filter(|(_, notifier)| notifier.read().is_ok())
            .inspect(|&(index, _)| self.transport.process_queue(index))
            .count()
            != 0
        {}
    }

    /// The next used element of queue `index`, as head and written length.
    pub fn take_used(&mut self, index: u16) -> Option<(u16, u32)> {
        self.queues.get_mut(usize::from(index)).unwrap().take_used()
    }

    /// Whether an interrupt came since the last call.
    pub fn take_interrupt(&self) -> bool {
        self.transport.irq().read().is_ok()
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Writes guest memory.
    pub fn fill(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// Reads guest memory.
    pub fn peek(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn write_address(&self, low: u64, address: u64) {
        self.write(low, address as u32);
        self.write(low + 4, (address >> 32) as u32);
    }
}

fn queues(mem: &GuestRam, sizes: &[u16]) -> Vec<FakeQueue> {
    let queue = |(index, &size)| FakeQueue::new(mem, QUEUE_SPACING * index, size);
    (1..).zip(sizes).map(queue).collect()
}
