//! The contract between a virtio device model, its transport and the event loop that drives it.
//!
//! ```text
//! request: ioeventfd -> worker::run -> Device::process_queue -> parse -> execute -> complete -> irqfd
//! ```
//!
//! Life of a device (virtio 1.2, section 3.1): `new` -> [`VirtioDevice::activate`] when the driver sets
//! DRIVER_OK -> any number of `process_*` calls -> [`VirtioDevice::reset`] -> `activate` again, and so on.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;

use crate::GuestRam;
use crate::rate::{RateControl, RateLimiter};

/// Raises the device's interrupt. Implemented by the transport; devices only call it.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that used buffers are there (virtio 1.2, section 2.9).
    fn notify_used(&self, queue: u16);
    /// Tells the driver that the configuration space changed.
    fn notify_config(&self);
    /// Asks the event loop for another [`VirtioDevice::process_queue`], for a device that stopped because
    /// its budget of work was used up and not because the queue was empty.
    fn reschedule(&self, queue: u16);
}

/// What a device receives when the driver sets DRIVER_OK.
pub struct Activation {
    /// Guest memory; cheap to clone, never turned into a Rust reference.
    pub mem: GuestRam,
    /// One entry per queue in index order. The transport has checked that each ready queue is valid.
    pub queues: Vec<Queue>,
    /// Features that both sides agreed on.
    pub acknowledged_features: u64,
    /// The device's interrupt.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A host file descriptor that the event loop polls for a device while it is active.
#[derive(Clone, Copy, Debug)]
pub struct HostEvent {
    /// The descriptor, owned by the device and valid until `reset` or drop.
    pub fd: RawFd,
    /// What to wait for.
    pub events: EventSet,
    /// Given back to [`VirtioDevice::process_host_event`].
    pub token: u32,
}

/// The guest broke the protocol: the transport sets DEVICE_NEEDS_RESET, counts it, and the VM lives on.
///
/// A failure of the host is no such error: it goes into the request's status.
#[derive(Debug, thiserror::Error)]
#[error("protocol violation on queue {queue}: {what}")]
pub struct ProtocolViolation {
    /// Queue index.
    pub queue: u16,
    /// What was wrong, in lower case, with the concrete values.
    pub what: String,
}

/// A saved state could not be loaded into this device.
#[derive(Debug, thiserror::Error)]
#[error("cannot restore {device}: {what}")]
pub struct RestoreError {
    /// Name of the device.
    pub device: &'static str,
    /// What does not fit.
    pub what: String,
}

/// What a read of the configuration space `space` at `offset` gives; bytes beyond its end are zero.
pub(super) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    data.fill(0);
    for (byte, &value) in data.iter_mut().zip(space.get(offset..).unwrap_or_default()) {
        *byte = value;
    }
}

/// The timer of a device whose only event of the host's it is.
pub(super) fn timer_of(limiter: Option<&RateLimiter>) -> Vec<HostEvent> {
    let event = |limiter: &RateLimiter| HostEvent { fd: limiter.fd(), events: EventSet::IN, token: 0 };
    limiter.map(event).into_iter().collect()
}

/// A virtio device model.
///
/// Called under the transport's lock, by one thread at a time. No method may block for longer than one
/// host system call on the backend.
pub trait VirtioDevice: Send {
    /// Short name for logs and metrics, for example `block`.
    fn name(&self) -> &'static str;

    /// Device ID (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// Largest size of each queue, in index order; each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Offered features, VIRTIO_F_VERSION_1 included.
    fn features(&self) -> u64;

    /// Reads configuration space. Bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space. Writes beyond its end or to read-only fields are ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready; afterwards the device may touch the queues.
    fn activate(&mut self, activation: Activation);

    /// Back to the state after `new`: queues and acknowledged features are dropped, backends stay open.
    fn reset(&mut self);

    /// The driver notified queue `index`, or the device was resumed or restored.
    ///
    /// Work per call is bounded by the queue's size. Does nothing on a device that is not active.
    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation>;

    /// Whether the event loop may look for work by itself for a while, see [`VirtioDevice::poll`].
    fn is_pollable(&self) -> bool {
        false
    }

    /// From now on the event loop calls [`VirtioDevice::poll`] again and again, so the driver need not
    /// notify; or, with false, it does so no more: the driver is asked to notify, and what came before
    /// that is worked on. Ends with `reset`. Does nothing on a device that is not active.
    fn set_polled(&mut self, polled: bool) -> Result<(), ProtocolViolation> {
        let _ = polled;
        Ok(())
    }

    /// Works on what is there, without having been told, and says whether there was anything. Costs next
    /// to nothing if there is not. Only after `set_polled(true)`.
    fn poll(&mut self) -> Result<bool, ProtocolViolation> {
        Ok(false)
    }

    /// Waits until the host has finished every request that the device began, and completes them: after
    /// that the device touches guest memory only when called. Called with the vCPUs stopped.
    fn quiesce(&mut self) -> Result<(), ProtocolViolation> {
        Ok(())
    }

    /// Descriptors to poll while active. Asked after each `activate`, `restore` and `process_*` call
    /// only if [`VirtioDevice::host_events_changed`] says so.
    fn host_events(&self) -> Vec<HostEvent> {
        Vec::new()
    }

    /// True once after the answer of `host_events` changed.
    fn host_events_changed(&mut self) -> bool {
        false
    }

    /// A descriptor of [`VirtioDevice::host_events`] is ready.
    fn process_host_event(&mut self, token: u32, events: EventSet) -> Result<(), ProtocolViolation> {
        let _ = (token, events);
        Ok(())
    }

    /// What changes the device's limits, if it can have any.
    fn rate_control(&self) -> Option<RateControl> {
        None
    }

    /// Puts the file `path` in place of the device's medium; requests that were begun are completed before. The
    /// transport tells the driver. An error leaves the old one, in words that name the file.
    fn change_medium(&mut self, path: &Path) -> Result<(), String> {
        let _ = path;
        Err(format!("a device of type {} has no medium to change", self.name()))
    }

    /// What the host last failed at, in words, if it failed since the last call. Asked after each
    /// `process_*` call and reported with a limit; the driver has had its answer already.
    fn take_host_failure(&mut self) -> Option<String> {
        None
    }

    /// Queue states, in index order, while active; for saving, after `quiesce`. Empty when not active.
    fn queue_states(&self) -> Vec<virtio_queue::QueueState>;

    /// What else than the queues must survive a snapshot, as postcard. Called after `quiesce`.
    fn save(&self) -> Vec<u8>;

    /// Loads what `save` gave, before `activate`. The bytes are not trusted.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError>;
}
