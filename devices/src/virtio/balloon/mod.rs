//! Memory balloon (virtio 1.2, section 5.5): the guest gives memory back to the host.
//!
//! ```text
//! host ── BalloonControl::set_target ─► config interrupt ─► driver inflates ─► inflateq ─► give back
//! driver frees pages ─► reporting_vq ────────────────────────────────────────────────────► give back
//! ```
//!
//! Both queues name pages whose content the guest has no use for: what it reads there later may be anything,
//! so it is zero or, where memory is a private mapping of a template, what the template held. No page need be
//! asked for before it is used again: touching it is enough, and the deflate queue is only acknowledged.
//!
//! The guest controls every address and how often it gives back what. Addresses outside its RAM break the
//! protocol, persistent memory included.

mod control;
mod pages;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

pub use self::control::{BalloonControl, TargetError};
use self::pages::{PageRange, PageRanges};
use super::device::{Activation, HostEvent, Interrupt, ProtocolViolation, RestoreError, VirtioDevice};
use super::guest_buffers::{ChainError, Direction, GuestBuffers, MAX_CHAIN_DESCRIPTORS};
use super::queue::{ActiveQueue, Chain};
use crate::GuestRam;

/// The driver may take pages out of the balloon when it runs out of memory (section 5.5.3).
const DEFLATE_ON_OOM: u32 = 2;
/// The driver reports free pages (section 5.5.3).
const PAGE_REPORTING: u32 = 5;

/// Pages named by one inflation: what Linux sends at most. With the queue's size it bounds the system calls
/// of one turn; the rest of a longer list stays with the guest.
const MAX_PFNS: usize = 256;
/// Bytes of one page frame number.
const PFN_BYTES: usize = 4;
/// Descriptors of the inflate and the deflate queue; Linux has one chain under way.
const BALLOON_QUEUE_SIZE: u16 = 16;
/// Descriptors of the reporting queue; Linux reports up to 32 ranges in a chain and takes no smaller queue.
const REPORTING_QUEUE_SIZE: u16 = 32;

const INFLATE: u16 = 0;
/// There is neither a statistics nor a hinting queue; Linux leaves no gap for queues that it does not use.
const REPORTING: u16 = 2;
/// Length of the configuration space.
const CONFIG_BYTES: usize = 16;
/// Where `actual` is, the only field that the driver writes.
const ACTUAL: u64 = 4;

/// The device.
pub struct Balloon {
    /// What may be given back: never more than the guest's RAM, whatever else devices may address.
    ram: GuestRam,
    control: BalloonControl,
    /// What the host last failed at, until somebody asks.
    failure: Option<String>,
    /// Present from `activate` to `reset`.
    active: Option<Active>,
}

struct Active {
    mem: GuestRam,
    queues: Vec<ActiveQueue>,
    interrupt: Arc<dyn Interrupt>,
}

/// What a snapshot keeps, in pages of 4 KiB.
#[derive(Debug, Deserialize, Serialize)]
struct BalloonState {
    target: u32,
    actual: u32,
}

impl Balloon {
    /// A balloon for a guest with this RAM, empty. Opens an eventfd.
    pub fn new(ram: GuestRam) -> std::io::Result<Self> {
        let control = BalloonControl::new(pages::count(&ram))?;
        Ok(Self { ram, control, failure: None, active: None })
    }

    /// What the owner of the VM steers it with, at any time.
    pub fn control(&self) -> BalloonControl {
        self.control.clone()
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &'static str {
        "balloon"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &[BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE, REPORTING_QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << DEFLATE_ON_OOM)
            | (1 << PAGE_REPORTING)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        let values = [self.control.target_pages(), self.control.actual_pages()];
        for (field, value) in space.chunks_exact_mut(4).zip(values) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        data.fill(0);
        for (byte, &value) in data.iter_mut().zip(space.get(offset..).unwrap_or_default()) {
            *byte = value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.control.set_actual_pages(u32::from_le_bytes(word));
        }
    }

    fn activate(&mut self, activation: Activation) {
        let Activation { mem, queues, interrupt, .. } = activation;
        let queues = ActiveQueue::all(queues, &interrupt);
        self.active = Some(Active { mem, queues, interrupt });
    }

    fn reset(&mut self) {
        self.active = None;
        self.control.set_actual_pages(0);
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        let Some(Active { mem, queues, .. }) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = queues.get_mut(usize::from(index)) else {
            return Ok(());
        };
        let (ram, failure) = (&self.ram, &mut self.failure);
        queue.process(mem, |chain| {
            let ranges = match index {
                INFLATE => inflated(mem, chain),
                REPORTING => reported(chain),
                _ => Ok(PageRanges::default()),
            };
            let ranges = ranges.map_err(|error| error.to_string());
            match ranges.and_then(|ranges| ranges.within(ram)) {
                Ok(pieces) => {
                    if let Some(error) = pieces.iter().find_map(|piece| piece.give_back().err()) {
                        *failure = Some(format!("give memory of the guest back: {error}"));
                    }
                    Ok(0)
                }
                Err(what) => Err(ProtocolViolation { queue: index, what }),
            }
        })
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
        self.active.iter().flat_map(|active| active.queues.iter().map(ActiveQueue::state)).collect()
    }

    fn save(&self) -> Vec<u8> {
        let state = BalloonState { target: self.control.target_pages(), actual: self.control.actual_pages() };
        postcard::to_allocvec(&state).expect("invariant: plain numbers always serialize")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let error = |what: String| RestoreError { device: "balloon", what };
        let saved: BalloonState = postcard::from_bytes(state).map_err(|source| error(source.to_string()))?;
        if !self.control.restore(saved.target, saved.actual) {
            return Err(error(format!("{saved:?} is more than the guest's RAM")));
        }
        Ok(())
    }
}

/// The pages that an inflation names (section 5.5.6): 32-bit numbers of 4 KiB pages.
fn inflated(mem: &GuestRam, chain: Chain<'_>) -> Result<PageRanges, ChainError> {
    let list = GuestBuffers::collect(mem, chain, Direction::Readable)?;
    let mut bytes = [0; MAX_PFNS * PFN_BYTES];
    let whole = list.len().min(bytes.len());
    let bytes = bytes.get_mut(..whole).unwrap_or_default();
    list.copy_to(0, bytes);
    let pfns = bytes.chunks_exact(PFN_BYTES).filter_map(|pfn| Some(u32::from_le_bytes(pfn.try_into().ok()?)));
    Ok(pfns.map(PageRange::of_pfn).collect())
}

/// The ranges that a report names (section 5.5.6.7): the buffers themselves.
fn reported(chain: Chain<'_>) -> Result<PageRanges, ChainError> {
    let mut ranges = Vec::new();
    let mut complete = false;
    for (count, descriptor) in chain.enumerate() {
        if count >= MAX_CHAIN_DESCRIPTORS {
            return Err(ChainError::TooManyDescriptors);
        }
        if !descriptor.is_write_only() {
            return Err(ChainError::WrongDirection(Direction::Writable));
        }
        complete = !descriptor.has_next();
        ranges.push(PageRange::of_buffer(descriptor.addr().0, descriptor.len()));
    }
    // As in `GuestBuffers::collect`.
    if complete { Ok(ranges.into_iter().collect()) } else { Err(ChainError::Broken) }
}
