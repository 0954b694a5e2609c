//! A virtio device behind MMIO (virtio 1.2, section 4.2): found, negotiated with, started.

use crate::boot::Options;
use crate::queue::Queue;
use crate::{fail, memory};

/// Device IDs.
pub const NET: u32 = 1;
pub const BLOCK: u32 = 2;
pub const VSOCK: u32 = 19;

const MAGIC: u32 = 0x7472_6976;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const SLOTS: u64 = 32;

const DEVICE_ID: u64 = 0x08;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
pub const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
const CONFIG: u64 = 0x100;

const ACKNOWLEDGE_DRIVER: u32 = 1 | 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// The registers of one device.
#[derive(Clone, Copy)]
pub struct Device {
    base: u64,
}

impl Device {
    /// Finds the first device of this kind where the command line says that devices are, resets it and
    /// accepts those of `wanted` that it offers, with VERSION_1 and EVENT_IDX.
    pub fn start(options: &Options, id: u32, wanted: u64) -> Self {
        let base = options.number("micro.mmio=");
        let stride = options.number("micro.stride=");
        let slot = |index| Device { base: base + index * stride };
        let device = (0..SLOTS)
            .map(slot)
            .find(|device| device.get(0) == MAGIC && device.get(4) == 2 && device.get(DEVICE_ID) == id)
            .unwrap_or_else(|| fail("no modern device of this kind"));
        device.set(STATUS, 0);
        device.set(STATUS, ACKNOWLEDGE_DRIVER);
        let word = |selector| {
            device.set(DEVICE_FEATURES_SEL, selector);
            u64::from(device.get(DEVICE_FEATURES))
        };
        let features = (word(0) | (word(1) << 32)) & (wanted | VERSION_1 | EVENT_IDX);
        if features & EVENT_IDX == 0 {
            fail("no EVENT_IDX");
        }
        for (selector, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            device.set(DRIVER_FEATURES_SEL, selector);
            device.set(DRIVER_FEATURES, half);
        }
        device.set(STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK);
        if device.get(STATUS) & FEATURES_OK == 0 {
            fail("features refused");
        }
        device
    }

    /// Sets up queue `index` with at most `size` descriptors.
    pub fn queue(&self, index: u32, size: u32) -> Queue {
        self.set(QUEUE_SEL, index);
        let size = self.get(QUEUE_NUM_MAX).min(size);
        self.set(QUEUE_NUM, size);
        let queue = Queue::new(
            memory::RINGS + 0x1_0000 * u64::from(index),
            size as u16,
            self.base + QUEUE_NOTIFY,
            index,
        );
        let [desc, driver, device] = queue.addresses();
        for (register, address) in [(QUEUE_DESC, desc), (QUEUE_DRIVER, driver), (QUEUE_DEVICE, device)] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(QUEUE_READY, 1);
        queue
    }

    /// The queues are ready.
    pub fn go(&self) {
        self.set(STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Tells the device that queue `index` has something, whether it has or not.
    pub fn notify(&self, index: u32) {
        self.set(QUEUE_NOTIFY, index);
    }

    /// A word of the configuration space.
    pub fn config(&self, offset: u64) -> u32 {
        self.get(CONFIG + offset)
    }

    fn get(&self, register: u64) -> u32 {
        memory::read(self.base + register)
    }

    fn set(&self, register: u64, value: u32) {
        memory::write(self.base + register, value);
    }
}
