//! Memory device (virtio 1.2, section 5.15): the guest gets memory while it runs, and gives it back.
//!
//! ```text
//! host ── MemControl::request ─► config interrupt ─► driver ── PLUG or UNPLUG blocks ─► device
//!                                                                    unplugged blocks are given back to the host
//! ```
//!
//! The region is there from the start, without a page behind it. The guest controls which blocks it plugs, within what
//! the host asked for. A driver that uses blocks which it has not plugged breaks its promise
//! (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE) and costs the host pages all the same: the region's size is what the host must
//! be able to give.

mod control;
mod request;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

pub use self::control::{MemControl, SizeError, Sizes};
use self::request::{BlockRange, BlockState, REQUEST_BYTES, Request, Response};
use super::balloon::{PageRange, PageRanges};
use super::device::{
    Activation, HostEvent, Interrupt, ProtocolViolation, RestoreError, VirtioDevice, read_space,
};
use super::guest_buffers::GuestBuffers;
use super::queue::{ActiveQueue, Chain};
use crate::GuestRam;

/// The driver touches no block that is not plugged (section 5.15.3).
const UNPLUGGED_INACCESSIBLE: u32 = 1;
/// Descriptors of the queue; Linux has one request under way.
const QUEUE_SIZE: u16 = 16;
/// Bytes of the configuration space (section 5.15.4).
const CONFIG_BYTES: usize = 56;

/// Where the memory is. All of it in bytes, address and size being multiples of a block, which is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRegion {
    /// Guest-physical start.
    pub address: u64,
    /// Of all of it.
    pub size: u64,
    /// Of the smallest part that is plugged.
    pub block: u64,
}

/// The device.
pub struct Mem {
    /// Guest RAM with the region in it.
    ram: GuestRam,
    control: MemControl,
    /// By the number of the block: it is plugged.
    plugged: Vec<bool>,
    /// What the host last failed at, until somebody asks.
    failure: Option<String>,
    /// Present from `activate` to `reset`.
    active: Option<Active>,
}

struct Active {
    mem: GuestRam,
    queue: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
}

/// What a snapshot keeps.
#[derive(Debug, Deserialize, Serialize)]
struct MemState {
    /// In bytes.
    requested: u64,
    /// In bytes.
    usable: u64,
    /// Blocks that are plugged: first and number, ascending.
    plugged: Vec<(u32, u32)>,
}

impl Mem {
    /// The device of `region`, which `ram` has, with nothing plugged. Opens an eventfd.
    pub fn new(ram: GuestRam, region: MemRegion) -> std::io::Result<Self> {
        let blocks = region.size.checked_div(region.block).unwrap_or(0);
        let plugged = vec![false; usize::try_from(blocks).unwrap_or(0)];
        Ok(Self { ram, control: MemControl::new(region)?, plugged, failure: None, active: None })
    }

    /// What the owner of the VM steers it with, at any time.
    pub fn control(&self) -> MemControl {
        self.control.clone()
    }

    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Plug(range) => self.plug(range),
            Request::Unplug(range) => self.unplug(range),
            Request::UnplugAll => {
                self.change(0..self.plugged.len(), false);
                let mut sizes = self.control.lock();
                sizes.usable = sizes.requested;
                Response::Ack(BlockState::Plugged)
            }
            Request::State(range) => match self.blocks(range) {
                Some(blocks) => Response::Ack(self.state(blocks)),
                None => Response::Error,
            },
        }
    }

    fn plug(&mut self, range: BlockRange) -> Response {
        let Some(blocks) = self.blocks(range) else { return Response::Error };
        if self.state(blocks.clone()) != BlockState::Unplugged {
            return Response::Error;
        }
        let Sizes { requested, plugged, .. } = self.control.sizes();
        let more = u64::from(range.count).saturating_mul(self.control.region().block);
        if plugged.saturating_add(more) > requested {
            return Response::Nack;
        }
        self.change(blocks, true);
        Response::Ack(BlockState::Plugged)
    }

    fn unplug(&mut self, range: BlockRange) -> Response {
        match self.blocks(range) {
            Some(blocks) if self.state(blocks.clone()) == BlockState::Plugged => {
                self.change(blocks, false);
                Response::Ack(BlockState::Plugged)
            }
            _ => Response::Error,
        }
    }

    /// The numbers of the usable blocks that `range` names.
    fn blocks(&self, range: BlockRange) -> Option<Range<usize>> {
        let MemRegion { address, block, .. } = self.control.region();
        let offset = range.address.checked_sub(address).filter(|offset| offset.is_multiple_of(block))?;
        let end = offset.checked_add(u64::from(range.count).checked_mul(block)?)?;
        if range.count == 0 || end > self.control.sizes().usable {
            return None;
        }
        let number = |offset: u64| usize::try_from(offset.checked_div(block)?).ok();
        Some(number(offset)?..number(end)?)
    }

    fn state(&self, blocks: Range<usize>) -> BlockState {
        let of = |blocks: &[bool]| match (blocks.contains(&true), blocks.contains(&false)) {
            (true, false) => BlockState::Plugged,
            (true, true) => BlockState::Mixed,
            (false, _) => BlockState::Unplugged,
        };
        of(self.plugged.get(blocks).unwrap_or_default())
    }

    /// Plugs or unplugs `blocks`, whatever they were. What is unplugged has no pages any more.
    fn change(&mut self, blocks: Range<usize>, plug: bool) {
        let MemRegion { address, block, .. } = self.control.region();
        let place = |number: usize| address.saturating_add(block.saturating_mul(number as u64));
        let range = PageRange::new(place(blocks.start), place(blocks.end));
        let Some(blocks) = self.plugged.get_mut(blocks) else { return };
        let changed = blocks.iter().filter(|plugged| **plugged != plug).count() as u64;
        blocks.fill(plug);
        let mut sizes = self.control.lock();
        let bytes = changed.saturating_mul(block);
        if plug {
            sizes.plugged = sizes.plugged.saturating_add(bytes);
            return;
        }
        sizes.plugged = sizes.plugged.saturating_sub(bytes);
        drop(sizes);
        let pieces = std::iter::once(range).collect::<PageRanges>().within(&self.ram);
        let given = pieces.map(|pieces| pieces.iter().find_map(|piece| piece.give_back().err()));
        if let Ok(Some(error)) = given {
            self.failure = Some(format!("give unplugged memory back: {error}"));
        }
    }

    fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (number, _) in (0_u32..).zip(&self.plugged).filter(|(_, plugged)| **plugged) {
            match runs.last_mut() {
                Some((first, count)) if first.saturating_add(*count) == number => {
                    *count = count.saturating_add(1);
                }
                _ => runs.push((number, 1)),
            }
        }
        runs
    }
}

impl VirtioDevice for Mem {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << UNPLUGGED_INACCESSIBLE)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (region, sizes) = (self.control.region(), self.control.sizes());
        // The second word is the node's number, which there is none of, and padding.
        let words =
            [region.block, 0, region.address, region.size, sizes.usable, sizes.plugged, sizes.requested];
        let mut space = [0; CONFIG_BYTES];
        for (field, value) in space.chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let Activation { mem, queues, interrupt, .. } = activation;
        let queue = ActiveQueue::all(queues, &interrupt).pop();
        self.active = queue.map(|queue| Active { mem, queue, interrupt });
        self.control.lock().active = true;
    }

    fn reset(&mut self) {
        self.active = None;
        // Plugged memory stays so (section 5.15.5): the next driver may read what was there, or unplug it.
        self.control.lock().active = false;
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let Active { mem, queue, .. } = &mut active;
        let done = queue.process(mem, |chain| {
            let violation = |what: String| ProtocolViolation { queue: index, what };
            let (request, response) = parse(mem, chain).map_err(violation)?;
            let answer = self.answer(request).bytes();
            if !response.copy_from(0, &answer) {
                return Err(violation(format!("{} bytes have no room for an answer", response.len())));
            }
            Ok(u32::try_from(answer.len()).unwrap_or_default())
        });
        self.active = Some(active);
        done
    }

    fn host_events(&self) -> Vec<HostEvent> {
        vec![HostEvent { fd: self.control.changed().as_raw_fd(), events: EventSet::IN, token: 0 }]
    }

    fn process_host_event(&mut self, _token: u32, _events: EventSet) -> Result<(), ProtocolViolation> {
        let _ = self.control.changed().read();
        if let Some(active) = &self.active {
            active.interrupt.notify_config();
        }
        Ok(())
    }

    fn take_host_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        self.active.iter().map(|active| active.queue.state()).collect()
    }

    fn save(&self) -> Vec<u8> {
        let Sizes { requested, usable, .. } = self.control.sizes();
        let state = MemState { requested, usable, plugged: self.runs() };
        postcard::to_allocvec(&state).expect("invariant: plain numbers always serialize")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let error = |what: String| RestoreError { device: "mem", what };
        let saved: MemState = postcard::from_bytes(state).map_err(|source| error(source.to_string()))?;
        let MemRegion { size, block, .. } = self.control.region();
        if saved.requested > size || saved.usable > size || !saved.requested.is_multiple_of(block) {
            return Err(error(format!("{} and {} bytes of {size}", saved.requested, saved.usable)));
        }
        self.plugged.fill(false);
        // Ascending, so that the work is bounded by the number of blocks.
        let mut end = 0;
        for &(first, count) in &saved.plugged {
            let run = first as usize..(first as usize).saturating_add(count as usize);
            let blocks = self.plugged.get_mut(run.clone()).filter(|_| run.start >= end);
            blocks.ok_or_else(|| error(format!("it has the impossible blocks {run:?}")))?.fill(true);
            end = run.end;
        }
        let count = self.plugged.iter().filter(|plugged| **plugged).count() as u64;
        let plugged = count.saturating_mul(block);
        let mut sizes = self.control.lock();
        (sizes.requested, sizes.usable, sizes.plugged) = (saved.requested, saved.usable, plugged);
        Ok(())
    }
}

/// The request that `chain` holds, and where its answer goes.
fn parse<'m>(mem: &'m GuestRam, chain: Chain<'_>) -> Result<(Request, GuestBuffers<'m>), String> {
    let (question, answer) = GuestBuffers::collect_both(mem, chain).map_err(|error| error.to_string())?;
    let mut bytes = [0; REQUEST_BYTES];
    if !question.copy_to(0, &mut bytes) {
        return Err(format!("a request of {} bytes", question.len()));
    }
    let request = Request::parse(bytes).map_err(|kind| format!("a request of the unknown type {kind}"))?;
    Ok((request, answer))
}
