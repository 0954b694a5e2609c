//! A device put into an empty slot, and taken out of it, while the VM runs.
//!
//! The guest probes the slot again after the first and lets go of it before the second; a guest that does not
//! has a device that reads as absent, nothing more.

use super::{DriverState, MmioTransport};
use crate::virtio::device::VirtioDevice;
use crate::virtio::placeholder::{self, Placeholder};

/// Queues that a device may have which is put into an empty slot.
pub const PLUGGED_QUEUES: usize = 2;

/// Why a device cannot be put into a slot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    /// There is a device.
    #[error("the slot is taken")]
    Taken,
    /// The slot has eventfds for so many queues.
    #[error("{count} queues: at most {PLUGGED_QUEUES} are possible")]
    Queues {
        /// Number of the device.
        count: usize,
    },
}

impl MmioTransport {
    /// There is no device in the slot.
    pub fn is_empty(&self) -> bool {
        self.device_id() == placeholder::DEVICE_ID
    }

    /// Puts `device` into the empty slot, as after a reset.
    pub fn plug(&self, device: Box<dyn VirtioDevice>) -> Result<(), PlugError> {
        let count = device.queue_sizes().len();
        if count > self.lines.queues().len() {
            return Err(PlugError::Queues { count });
        }
        let mut inner = self.lock();
        if inner.device.device_id() != placeholder::DEVICE_ID {
            return Err(PlugError::Taken);
        }
        inner.driver = DriverState::new(device.queue_sizes());
        inner.device = device;
        self.lines.reset();
        self.activity_changed(&mut inner);
        Ok(())
    }

    /// Empties the slot. The device that was there has stopped and let go of the guest's memory.
    pub fn unplug(&self) -> Box<dyn VirtioDevice> {
        let mut inner = self.lock();
        self.stop_device(&mut inner);
        inner.driver = DriverState::new(&[]);
        self.lines.reset();
        std::mem::replace(&mut inner.device, Box::new(Placeholder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::rng::Rng;
    use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, register};

    #[test]
    fn an_empty_slot_takes_one_device() {
        let driver = FakeDriver::new(Placeholder);
        assert!(driver.transport.is_empty());
        driver.transport.plug(Box::new(Rng::new())).unwrap();
        assert_eq!(driver.read(register::DEVICE_ID), 4);
        assert_eq!(driver.transport.plug(Box::new(Rng::new())), Err(PlugError::Taken));
    }

    #[test]
    fn a_device_that_was_taken_out_is_gone_and_another_works() {
        let mut driver = FakeDriver::start(Rng::new(), 0);
        driver.transport.unplug();
        assert_eq!((driver.read(register::DEVICE_ID), driver.read(register::STATUS)), (0, 0));
        // A driver that goes on as if nothing had happened is not served.
        driver.submit(0, &[Buffer::writable(BUFFERS, 16)]);
        assert_eq!(driver.take_used(0), None);
        assert_eq!(driver.transport.violations(), 0);

        let mut again = FakeDriver::with_mem(Rng::new(), driver.mem.clone());
        again.transport.unplug();
        again.transport.plug(Box::new(Rng::new())).unwrap();
        assert_eq!(again.initialize(0), 0xf);
        again.submit(0, &[Buffer::writable(BUFFERS, 16)]);
        assert_eq!(again.take_used(0).unwrap().1, 16);
    }
}
