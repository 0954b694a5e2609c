//! Memory balloon (virtio 1.2, section 5.5): the guest gives memory back to the host.
//!
//! ```text
//! host ── BalloonControl::set_target ─► config interrupt ─► driver inflates ─► inflateq ─► give back
//! driver frees pages ─► reporting_vq ────────────────────────────────────────────────────► give back
//! driver ── figures ──► statsq, if the host wants them: see `statistics.rs`
//! driver ── free pages, when the host asks ──► free_page_vq: see `hinting.rs`
//! ```
//!
//! Both queues name pages whose content the guest has no use for: what it reads there later may be anything,
//! so it is zero or, where memory is a private mapping of a template, what the template held. No page need be
//! asked for before it is used again: touching it is enough, and the deflate queue is only acknowledged.
//!
//! The guest controls every address and how often it gives back what. Addresses outside its RAM break the
//! protocol, persistent memory included.

mod control;
mod hinting;
mod pages;
mod statistics;
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
use self::hinting::Hinting;
pub use self::hinting::{HintingError, HintingStatus};
pub(super) use self::pages::{PageRange, PageRanges};
pub use self::statistics::{FIGURES, Figures, Statistics};
use super::device::{
    Activation, HostEvent, Interrupt, ProtocolViolation, RestoreError, VirtioDevice, read_space,
};
use super::guest_buffers::{ChainError, Direction, GuestBuffers, MAX_CHAIN_DESCRIPTORS};
use super::queue::{ActiveQueue, Chain, Handled};
use crate::GuestRam;

/// The driver has figures about its memory (section 5.5.3).
const STATISTICS: u32 = 1;
/// The driver may take pages out of the balloon when it runs out of memory (section 5.5.3).
const DEFLATE_ON_OOM: u32 = 2;
/// The driver names free pages when it is asked (section 5.5.3).
const FREE_PAGE_HINT: u32 = 3;
/// The driver reports free pages (section 5.5.3).
const PAGE_REPORTING: u32 = 5;

/// Pages named by one inflation: what Linux sends at most. With the queue's size it bounds the system calls
/// of one turn; the rest of a longer list stays with the guest.
const MAX_PFNS: usize = 256;
/// Bytes of one page frame number.
const PFN_BYTES: usize = 4;
/// Descriptors of the inflate and the deflate queue; Linux has one chain under way.
const BALLOON_QUEUE_SIZE: u16 = 16;
/// Descriptors of each other queue; Linux reports up to 32 ranges in a chain and takes no smaller queue for that.
const OTHER_QUEUE_SIZE: u16 = 32;
/// Most queues: inflation, deflation, statistics, hinting, reporting.
const QUEUES: usize = 5;

/// The queue after inflation and deflation: of statistics, hinting and reporting the first one that was negotiated.
/// Linux leaves no gap for queues that it does not use.
const THIRD: u16 = 2;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Inflate,
    Deflate,
    Statistics,
    Hinting,
    Reporting,
}

/// Token of the changed target.
const CHANGED: u32 = 0;
/// Token of the statistics' timer.
const TIMER: u32 = 1;
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
    /// The driver's buffer for figures, which is given back to get new ones.
    kept: Option<u16>,
    /// It goes on from a snapshot, and its driver does not know so far.
    restored: bool,
    /// Present from `activate` to `reset`.
    active: Option<Active>,
}

struct Active {
    mem: GuestRam,
    queues: Vec<ActiveQueue>,
    interrupt: Arc<dyn Interrupt>,
    /// What each queue is for.
    purposes: Vec<Purpose>,
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
        Self::build(ram, None, None)
    }

    /// The same that asks its guest for figures every `interval_s` seconds, unless that is 0, and, with `hinting`, for
    /// free pages when its owner wants them. Opens a timer for the figures.
    pub fn with_options(ram: GuestRam, interval_s: u16, hinting: bool) -> std::io::Result<Self> {
        let statistics = (interval_s > 0).then(|| Statistics::open(interval_s)).transpose()?;
        Self::build(ram, statistics, hinting.then(Hinting::default))
    }

    fn build(
        ram: GuestRam,
        statistics: Option<Statistics>,
        hinting: Option<Hinting>,
    ) -> std::io::Result<Self> {
        let control = BalloonControl::new(pages::count(&ram), statistics, hinting)?;
        Ok(Self { ram, control, failure: None, kept: None, restored: false, active: None })
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
        const SIZES: &[u16; QUEUES] =
            &[BALLOON_QUEUE_SIZE, BALLOON_QUEUE_SIZE, OTHER_QUEUE_SIZE, OTHER_QUEUE_SIZE, OTHER_QUEUE_SIZE];
        SIZES.get(..purposes(self.features()).len()).unwrap_or(SIZES)
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << DEFLATE_ON_OOM)
            | (1 << PAGE_REPORTING)
            | (u64::from(self.control.statistics().is_some()) << STATISTICS)
            | (u64::from(self.control.hinting().is_ok()) << FREE_PAGE_HINT)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        let command = self.control.hinting_status().map_or(0, |status| status.host);
        let values = [self.control.target_pages(), self.control.actual_pages(), command];
        for (field, value) in space.chunks_exact_mut(4).zip(values) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.control.set_actual_pages(u32::from_le_bytes(word));
        }
    }

    fn activate(&mut self, activation: Activation) {
        let Activation { mem, queues, interrupt, acknowledged_features } = activation;
        let purposes = purposes(acknowledged_features);
        let queues = ActiveQueue::all(queues, &interrupt);
        let _ =
            self.control.hinting().map(|hinting| hinting.set_active(purposes.contains(&Purpose::Hinting)));
        self.active = Some(Active { mem, queues, interrupt, purposes });
        if std::mem::take(&mut self.restored)
            && let Ok(hinting) = self.control.hinting()
        {
            hinting.restored();
            self.control.notify();
        }
    }

    fn reset(&mut self) {
        self.active = None;
        self.kept = None;
        self.control.set_actual_pages(0);
        let _ = self.control.hinting().map(|hinting| hinting.set_active(false));
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        let Some(Active { mem, queues, purposes, .. }) = &mut self.active else {
            return Ok(());
        };
        let (Some(queue), Some(purpose)) =
            (queues.get_mut(usize::from(index)), purposes.get(usize::from(index)).copied())
        else {
            return Ok(());
        };
        if purpose == Purpose::Statistics {
            return self.take_figures();
        }
        let (ram, failure, control) = (&self.ram, &mut self.failure, &self.control);
        queue.process(mem, |chain| {
            let ranges = match purpose {
                Purpose::Inflate => inflated(mem, chain),
                Purpose::Reporting => reported(chain),
                Purpose::Hinting => hinted(mem, chain, control),
                Purpose::Deflate | Purpose::Statistics => Ok(PageRanges::default()),
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
        let event = |fd, token| HostEvent { fd, events: EventSet::IN, token };
        let timer = self.control.statistics().map(|statistics| event(statistics.fd(), TIMER));
        timer.into_iter().chain([event(self.control.changed().as_raw_fd(), CHANGED)]).collect()
    }

    fn process_host_event(&mut self, token: u32, _events: EventSet) -> Result<(), ProtocolViolation> {
        if token == TIMER {
            return self.ask_for_figures();
        }
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
        let mut bytes = postcard::to_allocvec(&state).expect("invariant: plain numbers always serialize");
        if self.control.statistics().is_some() {
            bytes.extend(
                postcard::to_allocvec(&self.kept).expect("invariant: plain numbers always serialize"),
            );
        }
        bytes
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let error = |what: String| RestoreError { device: "balloon", what };
        let decode = |source: postcard::Error| error(source.to_string());
        let (saved, rest): (BalloonState, _) = postcard::take_from_bytes(state).map_err(decode)?;
        if self.control.statistics().is_some() {
            self.kept = postcard::from_bytes(rest).map_err(decode)?;
        } else if !rest.is_empty() {
            return Err(error("it has statistics, which this one has not".to_owned()));
        }
        if !self.control.restore(saved.target, saved.actual) {
            return Err(error(format!("{saved:?} is more than the guest's RAM")));
        }
        // After `activate`, which comes with the queues.
        self.restored = true;
        Ok(())
    }
}

impl Balloon {
    /// Takes the figures that the driver sends and keeps its buffer until new ones are wanted.
    fn take_figures(&mut self) -> Result<(), ProtocolViolation> {
        let (Some(Active { mem, queues, .. }), Some(statistics)) =
            (&mut self.active, self.control.statistics())
        else {
            return Ok(());
        };
        let Some(queue) = queues.get_mut(usize::from(THIRD)) else { return Ok(()) };
        let mut kept = self.kept.take();
        queue.process_some(mem, |chain| {
            // A driver has one such buffer; one more than that comes back as it is.
            if kept.is_some() {
                return Ok(Handled::Done(0));
            }
            let head = chain.head_index();
            let buffers = GuestBuffers::collect(mem, chain, Direction::Readable)
                .map_err(|error| ProtocolViolation { queue: THIRD, what: error.to_string() })?;
            statistics.take(&buffers);
            kept = Some(head);
            Ok(Handled::InFlight)
        })?;
        self.kept = kept;
        Ok(())
    }

    /// Gives the driver its buffer back.
    fn ask_for_figures(&mut self) -> Result<(), ProtocolViolation> {
        if let Some(statistics) = self.control.statistics() {
            statistics.process_timer();
        }
        // Linux sends its first buffer before DRIVER_OK, when nobody listens.
        self.take_figures()?;
        let Some(Active { mem, queues, .. }) = &mut self.active else { return Ok(()) };
        let (Some(queue), Some(head)) = (queues.get_mut(usize::from(THIRD)), self.kept) else {
            return Ok(());
        };
        self.kept = None;
        queue.complete(mem, head, 0)?;
        queue.signal(mem)
    }
}

/// The queues of a driver that acknowledged `features`, in their order (section 5.5.2).
fn purposes(features: u64) -> Vec<Purpose> {
    let others = [
        (STATISTICS, Purpose::Statistics),
        (FREE_PAGE_HINT, Purpose::Hinting),
        (PAGE_REPORTING, Purpose::Reporting),
    ];
    let others = others.into_iter().filter(|(bit, _)| features & (1 << bit) != 0);
    [Purpose::Inflate, Purpose::Deflate].into_iter().chain(others.map(|(_, purpose)| purpose)).collect()
}

/// The free pages that the driver names (section 5.5.6.5): its word about the run, or buffers that are the pages.
fn hinted(mem: &GuestRam, chain: Chain<'_>, control: &BalloonControl) -> Result<PageRanges, ChainError> {
    let Ok(hinting) = control.hinting() else { return Ok(PageRanges::default()) };
    let (word, pages) = GuestBuffers::collect_both(mem, chain.clone())?;
    let mut bytes = [0; 4];
    if word.copy_to(0, &mut bytes) && hinting.hear(u32::from_le_bytes(bytes)) {
        control.notify();
    }
    if pages.is_empty() || !hinting.is_wanted() {
        return Ok(PageRanges::default());
    }
    let named = chain.filter(|descriptor| descriptor.is_write_only());
    Ok(named.map(|descriptor| PageRange::of_buffer(descriptor.addr().0, descriptor.len())).collect())
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
