//! Frames from the guest to the TAP: one `writev` each, straight from guest memory.

use super::header::{HEADER_SIZE, MAX_FRAME};
use super::tap::FrameIo;
use super::wire::{Sent, Wire};
use crate::GuestRam;
use crate::virtio::device::ProtocolViolation;
use crate::virtio::guest_buffers::{Direction, GuestBuffers};
use crate::virtio::queue::{ActiveQueue, Chain};

/// So many frames are given back at once: each time costs a cache line that the driver looks at.
pub const PUBLISH_AFTER: u16 = 16;

/// Why transmitting stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxStop {
    /// The guest has no frame.
    NoFrame,
    /// The TAP takes no frame now: poll it for writing.
    TapFull,
    /// A limit is reached: the limiter's timer says when to go on.
    Limited,
    /// As many frames as the queue has descriptors were sent: go on later.
    Budget,
}

/// Sends what the guest has, and interrupts the driver.
pub fn transmit(
    queue: &mut ActiveQueue,
    mem: &GuestRam,
    wire: &mut Wire<impl FrameIo>,
) -> Result<TxStop, ProtocolViolation> {
    queue.disable_notifications(mem)?;
    let mut stop = TxStop::Budget;
    let mut unseen = 0u16;
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop(mem)? else {
            if queue.enable_notifications(mem)? {
                queue.disable_notifications(mem)?;
                continue;
            }
            stop = TxStop::NoFrame;
            break;
        };
        let head = chain.head_index();
        let blocked = match send(queue, mem, chain, wire)? {
            Sent::Full => Some(TxStop::TapFull),
            Sent::Limited => Some(TxStop::Limited),
            Sent::Taken | Sent::Refused => None,
        };
        if let Some(blocked) = blocked {
            queue.undo_pop(1);
            stop = blocked;
            break;
        }
        queue.complete_unseen(mem, head, 0)?;
        unseen = unseen.saturating_add(1);
        if unseen >= PUBLISH_AFTER {
            queue.publish(mem)?;
            unseen = 0;
        }
    }
    queue.signal(mem)?;
    Ok(stop)
}

/// Sends one frame.
fn send(
    queue: &ActiveQueue,
    mem: &GuestRam,
    chain: Chain<'_>,
    wire: &mut Wire<impl FrameIo>,
) -> Result<Sent, ProtocolViolation> {
    let frame = GuestBuffers::collect(mem, chain, Direction::Readable)
        .map_err(|error| queue.violation(error.to_string()))?;
    if !(HEADER_SIZE..=HEADER_SIZE + MAX_FRAME).contains(&frame.len()) {
        return Err(queue.violation(format!("frame of {} bytes with its header", frame.len())));
    }
    Ok(wire.write(&frame))
}
