//! Entropy device (virtio 1.2, section 5.4): fills what the driver offers from the host's generator.
//!
//! The guest controls how many bytes it asks for. There is nothing to configure and nothing to save.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{Activation, ProtocolViolation, RestoreError, VirtioDevice};
use super::guest_buffers::{Direction, GuestBuffers};
use super::queue::{ActiveQueue, Chain};
use crate::GuestRam;

/// Number of descriptors in the queue.
const QUEUE_SIZE: u16 = 16;
/// Bytes given for one request, however large its buffers. Stops a guest from keeping the event loop
/// busy with entropy.
const MAX_ENTROPY_BYTES: usize = 64 << 10;
/// Bytes drawn at once.
const CHUNK_BYTES: usize = 256;

/// The device.
#[derive(Default)]
pub struct Rng {
    /// Present from `activate` to `reset`.
    active: Option<(GuestRam, ActiveQueue)>,
}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) {
        let queue = ActiveQueue::all(activation.queues, &activation.interrupt).pop();
        self.active = queue.map(|queue| (activation.mem, queue));
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), ProtocolViolation> {
        let Some((mem, queue)) = &mut self.active else {
            return Ok(());
        };
        queue.process(mem, |chain| fill(mem, chain).map_err(|what| ProtocolViolation { queue: 0, what }))
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        self.active.iter().map(|(_, queue)| queue.state()).collect()
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if state.is_empty() {
            return Ok(());
        }
        let what = format!("{} bytes of state, expected none", state.len());
        Err(RestoreError { device: "rng", what })
    }
}

/// Fills the buffers of `chain` and returns how many bytes it now holds. Fewer than asked for are allowed
/// (section 5.4.6.1); none are given if the host's generator fails.
fn fill(mem: &GuestRam, chain: Chain<'_>) -> Result<u32, String> {
    let buffers =
        GuestBuffers::collect(mem, chain, Direction::Writable).map_err(|error| error.to_string())?;
    let wanted = buffers.len().min(MAX_ENTROPY_BYTES);
    let mut chunk = [0; CHUNK_BYTES];
    let mut done = 0usize;
    while let Some(left) = wanted.checked_sub(done).filter(|&left| left > 0) {
        let part = chunk.get_mut(..left.min(CHUNK_BYTES)).unwrap_or_default();
        if getrandom::fill(part).is_err() || !buffers.copy_from(done, part) {
            break;
        }
        done = done.saturating_add(part.len());
    }
    u32::try_from(done).map_err(|_| "request too large".into())
}
