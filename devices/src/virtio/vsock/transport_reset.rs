//! After a restore, the guest's connections are gone and its context ID may be another one: the event
//! VIRTIO_VSOCK_EVENT_TRANSPORT_RESET says so (virtio 1.2, section 5.10.6.7).
//!
//! ```text
//! None ─restore─► Due ─(a buffer in the event queue)─► Sent ─(the driver gives a new one)─► None
//! ```
//!
//! The driver resets every connection when it handles the event, those of a new client too. So nothing goes
//! to the guest before the driver has given the event's buffer back, which it does after it handled it.

use crate::GuestRam;
use crate::virtio::device::ProtocolViolation;
use crate::virtio::guest_buffers::{Direction, GuestBuffers};
use crate::virtio::queue::ActiveQueue;

/// `struct virtio_vsock_event` with ID VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Where the announcement stands.
#[derive(Debug, Default)]
pub enum TransportReset {
    /// Nothing to announce.
    #[default]
    None,
    /// Not sent yet.
    Due,
    /// Sent when this many other buffers were left in the event queue.
    Sent(u16),
}

impl TransportReset {
    /// To be announced.
    pub fn due() -> Self {
        Self::Due
    }

    /// Does what can be done now; true when the guest knows and packets may flow.
    pub fn advance(&mut self, queue: &mut ActiveQueue, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
        if matches!(self, Self::Due) && send(queue, mem)? {
            *self = Self::Sent(queue.available(mem)?);
            // From here on the driver has to notify; what it gave before is counted in `Sent`.
            queue.notify_of_next(mem)?;
        }
        if let Self::Sent(left) = *self
            && queue.available(mem)? != left
        {
            *self = Self::None;
        }
        Ok(matches!(self, Self::None))
    }
}

/// Sends the event if there is a buffer for it.
fn send(queue: &mut ActiveQueue, mem: &GuestRam) -> Result<bool, ProtocolViolation> {
    let Some(chain) = queue.pop(mem)? else {
        queue.enable_notifications(mem)?;
        return Ok(false);
    };
    let head = chain.head_index();
    let target = GuestBuffers::collect(mem, chain, Direction::Writable)
        .map_err(|error| queue.violation(error.to_string()))?;
    if !target.copy_from(0, &TRANSPORT_RESET) {
        return Err(queue.violation(format!("event buffer of {} bytes", target.len())));
    }
    queue.complete(mem, head, 4)?;
    queue.signal(mem)?;
    Ok(true)
}
