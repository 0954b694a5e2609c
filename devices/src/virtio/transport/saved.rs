//! A transport's state in a snapshot: the driver's registers, the queues' positions, the device's own part.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::MmioTransport;
use super::driver_state::{DriverState, acceptable};
use crate::virtio::device::RestoreError;
use crate::virtio::placeholder;

/// What [`MmioTransport::save`] gives, as postcard.
#[derive(Debug, Deserialize, Serialize)]
struct TransportState {
    device_id: u32,
    driver: DriverState,
    /// Where each queue stands; empty while the device is not active.
    positions: Vec<QueuePosition>,
    interrupt_status: u32,
    config_generation: u32,
    /// From the device's `save`.
    device: Vec<u8>,
}

/// The ring indices of an active queue.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct QueuePosition {
    next_avail: u16,
    next_used: u16,
}

impl MmioTransport {
    /// The whole state of the transport and its device. Called with vCPUs and event loop stopped, and
    /// before guest memory is read: requests in flight are completed here.
    pub fn save(&self) -> Result<Vec<u8>, postcard::Error> {
        self.quiesce();
        let inner = self.lock();
        let positions = if inner.driver.is_active() { inner.device.queue_states() } else { Vec::new() };
        postcard::to_allocvec(&TransportState {
            device_id: inner.device.device_id(),
            driver: inner.driver.clone(),
            positions: positions
                .iter()
                .map(|state| QueuePosition { next_avail: state.next_avail, next_used: state.next_used })
                .collect(),
            interrupt_status: self.lines.status(),
            config_generation: self.lines.generation(),
            device: inner.device.save(),
        })
    }

    /// Loads what [`MmioTransport::save`] gave into a transport just made, around a device of the same
    /// configuration. Guest memory is loaded before. The bytes are not trusted: after an error nothing has
    /// been activated, and the transport must not be used.
    ///
    /// A pending interrupt is raised again and each queue looked at once. The state of a placeholder fits
    /// every device: the slot was empty, so the device in it now stays as after a reset.
    pub fn restore(&self, state: &[u8]) -> Result<(), RestoreError> {
        let mut inner = self.lock();
        let device = inner.device.name();
        let error = |what: String| RestoreError { device, what };
        let saved: TransportState =
            postcard::from_bytes(state).map_err(|source| error(format!("transport state: {source}")))?;
        if saved.device_id == placeholder::DEVICE_ID && inner.device.device_id() != saved.device_id {
            return Ok(());
        }
        if saved.device_id != inner.device.device_id() {
            return Err(error(format!("state is of device type {}", saved.device_id)));
        }
        check_driver(&saved.driver, inner.device.features(), inner.device.queue_sizes().len())
            .map_err(error)?;
        inner.device.restore(&saved.device)?;
        inner.driver = saved.driver;
        let mut active = None;
        if inner.driver.is_active() {
            let mut queues = self.build_queues(&inner).map_err(|violation| error(violation.to_string()))?;
            if queues.len() != saved.positions.len() {
                return Err(error(format!("{} queue positions", saved.positions.len())));
            }
            for (queue, position) in queues.iter_mut().zip(&saved.positions) {
                queue.set_next_avail(position.next_avail);
                queue.set_next_used(position.next_used);
            }
            active = Some(queues);
        }
        // Before the device is active, which may raise an interrupt of its own.
        self.lines.restore(saved.interrupt_status, saved.config_generation);
        if let Some(queues) = active {
            self.activate(&mut inner, queues);
        }
        Ok(())
    }
}

/// Whether the registers are ones that a driver of this device can have brought about.
fn check_driver(saved: &DriverState, offered: u64, queues: usize) -> Result<(), String> {
    if saved.queues.len() != queues {
        return Err(format!("state has {} queues, device has {queues}", saved.queues.len()));
    }
    if saved.is_active() && !acceptable(saved.driver_features, offered) {
        return Err(format!("features {:#x} are not among the offered {offered:#x}", saved.driver_features));
    }
    Ok(())
}
