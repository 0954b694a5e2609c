//! A virtio-mmio slot without a device (virtio 1.2, section 4.2.3.1.1): its DeviceID register reads zero.
//!
//! A driver ignores such a slot. Whoever restores the VM may put a real device there, which starts as after
//! a reset; the guest finds it by probing the slot again (`docs/vmm.md`). There is nothing to negotiate, no
//! queue and nothing to save.

use super::device::{Activation, ProtocolViolation, RestoreError, VirtioDevice};

/// What the DeviceID register of a placeholder reads as.
pub const DEVICE_ID: u32 = 0;

/// The absence of a device.
pub struct Placeholder;

impl VirtioDevice for Placeholder {
    fn name(&self) -> &'static str {
        "placeholder"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[]
    }

    /// None, not even VIRTIO_F_VERSION_1: a driver that tries anyway never gets to FEATURES_OK.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _activation: Activation) {}

    fn reset(&mut self) {}

    fn process_queue(&mut self, _index: u16) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        Vec::new()
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if state.is_empty() {
            return Ok(());
        }
        let what = format!("{} bytes of state, expected none", state.len());
        Err(RestoreError { device: "placeholder", what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::rng::Rng;
    use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, register, status};

    #[test]
    fn the_device_id_is_zero_behind_valid_registers() {
        let driver = FakeDriver::new(Placeholder);
        assert_eq!(driver.read(register::MAGIC_VALUE), 0x7472_6976);
        assert_eq!(driver.read(register::VERSION), 2);
        assert_eq!(driver.read(register::DEVICE_ID), 0);
        assert_eq!(driver.read(register::QUEUE_NUM_MAX), 0);
    }

    #[test]
    fn a_driver_that_does_not_ignore_it_gets_nowhere() {
        let mut driver = FakeDriver::new(Placeholder);
        let reached = driver.initialize(u64::MAX);
        assert_eq!(reached, status::ACKNOWLEDGE | status::DRIVER);
        driver.notify(0);
        driver.write(register::CONFIG, 7);
        assert_eq!(driver.read(register::CONFIG), 0);
        assert_eq!(driver.transport.violations(), 0);
    }

    #[test]
    fn a_device_in_a_slot_that_was_empty_when_saved_starts_as_after_a_reset() {
        let mut empty = FakeDriver::new(Placeholder);
        empty.initialize(0);
        let state = empty.transport.save().unwrap();
        let mut driver = FakeDriver::with_mem(Rng::new(), empty.mem.clone());
        driver.transport.restore(&state).unwrap();
        assert_eq!((driver.read(register::DEVICE_ID), driver.read(register::STATUS)), (4, 0));
        assert_eq!(driver.initialize(0), 0xf);
        driver.submit(0, &[Buffer::writable(BUFFERS, 16)]);
        assert_eq!(driver.take_used(0).unwrap().1, 16);
    }

    #[test]
    fn the_state_of_a_device_does_not_fit_an_empty_slot() {
        let state = FakeDriver::start(Rng::new(), 0).transport.save().unwrap();
        assert!(FakeDriver::new(Placeholder).transport.restore(&state).is_err());
    }

    #[test]
    fn an_empty_slot_stays_empty() {
        let state = FakeDriver::new(Placeholder).transport.save().unwrap();
        let restored = FakeDriver::new(Placeholder);
        restored.transport.restore(&state).unwrap();
        assert_eq!(restored.read(register::DEVICE_ID), 0);
    }
}
