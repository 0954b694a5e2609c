//! What the driver has told the transport: status, features, queues. Pure; no device is called here.
//!
//! ```text
//! reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK
//!   ^        (features are written here ^)  ^(queues are set up here)
//!   +---- a write of 0 in any state; NEEDS_RESET and FAILED are left in no other way
//! ```
//!
//! Virtio 1.2, sections 2.1 and 3.1.1. What is out of order is ignored, as the specification asks.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestAddress;

use super::registers::{Half, QueueArea};

pub const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
pub const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
pub const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
pub const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
pub const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
pub const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// Each status bit that a driver may set, and the bits that must be there before.
const PREREQUISITES: [(u32, u32); 5] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
    (FAILED, 0),
];

/// VIRTIO_F_VERSION_1 as a mask.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// VIRTIO_F_EVENT_IDX as a mask.
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// What a write to the Status register asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Nothing beyond the new status.
    None,
    /// Bring the device back to its first state.
    Reset,
    /// DRIVER_OK has just been set: activate the device.
    Activate,
    /// The driver gave up on an active device: take the queues away from it.
    Stop,
}

/// One queue as the driver set it up. Nothing in it has been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u32,
    /// Whether the driver uses the queue.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Guest physical address of the available ring.
    pub driver: u64,
    /// Guest physical address of the used ring.
    pub device: u64,
}

impl QueueSetup {
    /// The queue this describes, of at most `max_size` descriptors. Whether its rings are in guest memory
    /// is not checked here.
    pub fn build(&self, max_size: u16, features: u64) -> Result<Queue, Error> {
        let mut queue = Queue::new(max_size)?;
        if !self.ready {
            return Ok(queue);
        }
        queue.try_set_size(u16::try_from(self.size).map_err(|_| Error::InvalidSize)?)?;
        queue.try_set_desc_table_address(GuestAddress(self.desc))?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
        queue.try_set_used_ring_address(GuestAddress(self.device))?;
        queue.set_event_idx(features & EVENT_IDX != 0);
        queue.set_ready(true);
        Ok(queue)
    }

    fn address_mut(&mut self, area: QueueArea) -> &mut u64 {
        match area {
            QueueArea::Desc => &mut self.desc,
            QueueArea::Driver => &mut self.driver,
            QueueArea::Device => &mut self.device,
        }
    }
}

/// The registers that the driver writes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DriverState {
    /// Status.
    pub status: u32,
    /// Which word of the offered features is read.
    pub device_features_sel: u32,
    /// Which word of the accepted features is written.
    pub driver_features_sel: u32,
    /// The accepted features.
    pub driver_features: u64,
    /// Which queue the queue registers are about.
    pub queue_sel: u32,
    /// One per queue of the device.
    pub queues: Vec<QueueSetup>,
}

impl DriverState {
    /// The state after reset of a device with queues of these largest sizes.
    pub fn new(queue_sizes: &[u16]) -> Self {
        let queue = |&size: &u16| QueueSetup { size: size.into(), ..QueueSetup::default() };
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    /// Whether the device may use its queues.
    pub fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// A write to Status, with the features that the device offers.
    pub fn write_status(&mut self, value: u32, offered: u64) -> Transition {
        if value == 0 {
            return Transition::Reset;
        }
        let was_active = self.is_active();
        if self.status & (NEEDS_RESET | FAILED) != 0 {
            return Transition::None;
        }
        for (bit, needed) in PREREQUISITES {
            let refused = bit == FEATURES_OK && !acceptable(self.driver_features, offered);
            if value & bit != 0 && self.status & needed == needed && !refused {
                self.status |= bit;
            }
        }
        match (was_active, self.is_active()) {
            (false, true) => Transition::Activate,
            (true, false) => Transition::Stop,
            _ => Transition::None,
        }
    }

    /// A write to DriverFeatures. Ignored outside the negotiation.
    pub fn write_driver_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return;
        }
        let half = match self.driver_features_sel {
            0 => Half::Low,
            1 => Half::High,
            _ => return,
        };
        self.driver_features = half.replace(self.driver_features, value);
    }

    /// The queue that QueueSel selects, if there is one.
    pub fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// A write to QueueNum. Like each write to a queue, it is ignored while the queue is ready.
    pub fn write_queue_num(&mut self, value: u32) {
        if let Some(queue) = self.idle_queue_mut() {
            queue.size = value;
        }
    }

    /// A write to one half of a queue's address.
    pub fn write_queue_address(&mut self, area: QueueArea, half: Half, value: u32) {
        if let Some(queue) = self.idle_queue_mut() {
            let address = queue.address_mut(area);
            *address = half.replace(*address, value);
        }
    }

    /// A write to QueueReady.
    pub fn write_queue_ready(&mut self, value: u32) {
        if let Some(queue) = self.selected_mut() {
            queue.ready = value & 1 != 0;
        }
    }

    fn idle_queue_mut(&mut self) -> Option<&mut QueueSetup> {
        self.selected_mut().filter(|queue| !queue.ready)
    }

    /// The selected queue while the driver may set queues up: after FEATURES_OK and before DRIVER_OK.
    fn selected_mut(&mut self) -> Option<&mut QueueSetup> {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

/// Whether a device that offers `offered` works with a driver that accepted `accepted`.
pub fn acceptable(accepted: u64, offered: u64) -> bool {
    accepted & !offered == 0 && accepted & VERSION_1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = VERSION_1 | 0xff;

    #[test]
    fn status_follows_the_table() {
        const ALL: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        let table = [
            // before, written, after, transition
            (0, ACKNOWLEDGE, ACKNOWLEDGE, Transition::None),
            (0, DRIVER, 0, Transition::None),
            (0, DRIVER_OK, 0, Transition::None),
            (ACKNOWLEDGE, FEATURES_OK, ACKNOWLEDGE, Transition::None),
            (ACKNOWLEDGE, DRIVER, ACKNOWLEDGE | DRIVER, Transition::None),
            (ACKNOWLEDGE | DRIVER, DRIVER_OK, ACKNOWLEDGE | DRIVER, Transition::None),
            (ALL & !DRIVER_OK, DRIVER_OK, ALL, Transition::Activate),
            (ALL & !DRIVER_OK, DRIVER_OK | FAILED, ALL | FAILED, Transition::None),
            (0, ALL, ALL, Transition::Activate),
            (ALL, ALL, ALL, Transition::None),
            (ALL, ACKNOWLEDGE, ALL, Transition::None),
            (ALL, NEEDS_RESET | 16 | 32, ALL, Transition::None),
            (ALL, FAILED, ALL | FAILED, Transition::Stop),
            (FAILED, ALL, FAILED, Transition::None),
            (ALL | NEEDS_RESET, FAILED, ALL | NEEDS_RESET, Transition::None),
            (ALL | NEEDS_RESET, 0, ALL | NEEDS_RESET, Transition::Reset),
            (0, 0, 0, Transition::Reset),
        ];
        for (before, written, after, transition) in table {
            let mut state = DriverState::new(&[1]);
            state.status = before;
            state.driver_features = VERSION_1;
            assert_eq!(state.write_status(written, OFFERED), transition, "{before:#x} {written:#x}");
            assert_eq!(state.status, after, "{before:#x} {written:#x}");
        }
    }

    #[test]
    fn features_are_fixed_once_they_are_agreed_on() {
        let mut state = DriverState::new(&[1]);
        state.write_driver_features(1);
        assert_eq!(state.driver_features, 0, "no driver yet");
        state.write_status(ACKNOWLEDGE | DRIVER, OFFERED);
        state.write_driver_features(3);
        state.driver_features_sel = 1;
        state.write_driver_features(1);
        state.driver_features_sel = 2;
        state.write_driver_features(u32::MAX);
        assert_eq!(state.driver_features, VERSION_1 | 3);
        state.write_status(FEATURES_OK, OFFERED);
        state.driver_features_sel = 0;
        state.write_driver_features(0xff);
        assert_eq!(state.driver_features, VERSION_1 | 3);
    }

    #[test]
    fn a_queue_is_built_as_it_was_set_up() {
        let setup = QueueSetup { size: 4, ready: true, desc: 0x1000, driver: 0x2000, device: 0x3000 };
        let state = setup.build(8, EVENT_IDX).unwrap().state();
        assert_eq!((state.max_size, state.size, state.ready), (8, 4, true));
        assert_eq!((state.desc_table, state.avail_ring, state.used_ring), (0x1000, 0x2000, 0x3000));
        assert!(state.event_idx_enabled);
        assert!(!setup.build(8, 0).unwrap().event_idx_enabled());
        assert!(!QueueSetup { ready: false, ..setup }.build(8, 0).unwrap().ready());
        for broken in [
            QueueSetup { size: 0, ..setup },
            QueueSetup { size: 3, ..setup },
            QueueSetup { size: 16, ..setup },
            QueueSetup { size: 0x1_0004, ..setup },
            QueueSetup { desc: 0x1008, ..setup },
            QueueSetup { driver: 0x2001, ..setup },
            QueueSetup { device: 0x3002, ..setup },
        ] {
            assert!(broken.build(8, 0).is_err(), "{broken:?}");
        }
    }
}
