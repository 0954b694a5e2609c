//! Block device over a raw file (virtio 1.2, section 5.2).
//!
//! ```text
//! queue -> chain -> parse (request.rs) -> execute (backend.rs) -> status -> used ring
//! ```
//!
//! The guest controls every descriptor and every byte of a request. A chain without room for a header and a
//! status breaks the protocol; any other nonsense gets a status, as a failure of the host does.
//!
//! A disk of no sectors is a drive without a medium. A device restored from its state may have one: the
//! driver is told of the new capacity, which costs a guest far less than finding a new disk.
//!
//! Durability: with VIRTIO_BLK_F_FLUSH a write is on the medium after the next flush that the driver sees
//! complete, without it when the write itself completes. Both mean `fdatasync`.

mod backend;
mod config_space;
mod mapped;
mod medium;
mod request;
#[cfg(test)]
mod tests;
mod uring;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::Bytes;
use vmm_sys_util::epoll::EventSet;

use self::backend::{Backend, Data};
use self::config_space::{QUEUE_SIZE, SECTOR_SIZE};
use self::mapped::MappedDisk;
use self::request::{
    ByteRange, Disk, HEADER_BYTES, MAX_RANGES_BYTES, RawRequest, Request, SERIAL_BYTES, Status,
};
use self::uring::{InFlight, Uring};
use super::device::{Activation, HostEvent, ProtocolViolation, RestoreError, VirtioDevice, read_space};
use super::guest_buffers::{GuestBuffers, IoVecs};
use super::queue::{ActiveQueue, Chain, Handled};
use crate::GuestRam;
use crate::held;
use crate::rate::{Direction, RateControl, RateLimiter, RateLimits};

/// Token of the ring's descriptor.
const RING: u32 = 0;
/// Token of the limiter's timer.
const TIMER: u32 = 1;

/// One disk.
#[derive(Clone, Debug)]
pub struct BlockConfig {
    /// Raw image file or host block device; its size is a multiple of 512 bytes. An empty file is a drive
    /// without a medium.
    pub path: PathBuf,
    /// Offers VIRTIO_BLK_F_RO and opens the file for reading only.
    pub read_only: bool,
    /// Serial number that the guest reads, at most 20 bytes.
    pub serial: String,
    /// Who executes reads, writes and flushes.
    pub engine: BlockEngine,
    /// What it may carry.
    pub limits: RateLimits,
}

/// Who executes reads, writes and flushes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockEngine {
    /// The event loop itself, one after the other.
    Sync,
    /// The kernel, many at a time, by io_uring, except reads that the page cache has: those the event loop
    /// does at once. Where io_uring is not permitted, as with `Sync`.
    #[default]
    IoUring,
}

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file does not open.
    #[error("open disk {path}")]
    OpenDisk {
        /// Of the file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("disk {path} is neither a regular file nor a block device")]
    NotADisk {
        /// Of the file.
        path: PathBuf,
    },
    /// Not a whole number of sectors.
    #[error("disk {path} has {size} bytes: it must be a multiple of 512")]
    InvalidSize {
        /// Of the file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The host gives no timer for the limits.
    #[error("cannot make a timer for the limits of a disk")]
    Timer(#[source] io::Error),
    /// Too long a serial number.
    #[error("serial number {serial:?} has more than 20 bytes")]
    SerialTooLong {
        /// The serial number.
        serial: String,
    },
}

/// The device.
pub struct Block {
    /// Present from the first request that needs it. Dropped, when nothing is in flight, before the guest
    /// memory in `active`.
    ring: Option<Uring>,
    /// The ring is new since the event loop asked for it.
    ring_changed: bool,
    backend: Backend,
    disk: Disk,
    engine: BlockEngine,
    limiter: RateLimiter,
    /// What the host last failed at, until somebody asks.
    failure: Option<String>,
    /// The driver knows a drive without a medium and has to hear that there is one now.
    medium_is_new: bool,
    /// Present from `activate` to `reset`.
    active: Option<Active>,
}

struct Active {
    mem: GuestRam,
    queue: ActiveQueue,
    /// The driver does not flush, so each change is synced by itself.
    writethrough: bool,
}

/// What a snapshot keeps: the file itself is the caller's to keep.
#[derive(Debug, Deserialize, Serialize)]
struct BlockState {
    capacity_sectors: u64,
    read_only: bool,
}

impl Block {
    /// Opens the disk.
    pub fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        let mut serial = [0; SERIAL_BYTES];
        let bytes = config.serial.as_bytes();
        let Some(used) = serial.get_mut(..bytes.len()) else {
            return Err(BlockError::SerialTooLong { serial: config.serial.clone() });
        };
        used.copy_from_slice(bytes);
        let (file, size) = open_disk(&config.path, config.read_only)?;
        // Before the process loses the right to make one.
        let (mut engine, mut failure) = (config.engine, None);
        let ring = open_ring(&mut engine, &file, &mut failure);
        Ok(Self {
            ring,
            ring_changed: false,
            backend: Backend { mapped: MappedDisk::open(&file, size), file, serial },
            disk: Disk { capacity_sectors: size / SECTOR_SIZE, read_only: config.read_only },
            engine,
            limiter: RateLimiter::new(&config.limits).map_err(BlockError::Timer)?,
            failure,
            medium_is_new: false,
            active: None,
        })
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let mut features = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_BLK_F_SIZE_MAX)
            | (1 << VIRTIO_BLK_F_SEG_MAX)
            | (1 << VIRTIO_BLK_F_BLK_SIZE)
            | (1 << VIRTIO_BLK_F_TOPOLOGY);
        features |= if self.disk.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            (1 << VIRTIO_BLK_F_FLUSH) | (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
        };
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config_space::bytes(self.disk.capacity_sectors);
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let Activation { mem, queues, acknowledged_features, interrupt } = activation;
        let writethrough = acknowledged_features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        let queue = ActiveQueue::all(queues, &interrupt).pop();
        self.active = queue.map(|queue| Active { mem, queue, writethrough });
        if std::mem::take(&mut self.medium_is_new) {
            interrupt.notify_config();
        }
    }

    fn reset(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.drain();
        }
        self.active = None;
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), ProtocolViolation> {
        self.take_requests()?;
        self.complete_requests()
    }

    fn host_events(&self) -> Vec<HostEvent> {
        let event = |fd, token| HostEvent { fd, events: EventSet::IN, token };
        let ring = self.ring.iter().map(|ring| event(ring.fd(), RING));
        ring.chain([event(self.limiter.fd(), TIMER)]).collect()
    }

    fn host_events_changed(&mut self) -> bool {
        std::mem::take(&mut self.ring_changed)
    }

    fn process_host_event(&mut self, token: u32, _: EventSet) -> Result<(), ProtocolViolation> {
        if token == TIMER {
            self.limiter.process_timer();
        }
        self.complete_requests()?;
        // There is room again for what was left in the queue.
        self.process_queue(0)
    }

    fn quiesce(&mut self) -> Result<(), ProtocolViolation> {
        while let Some(ring) = &mut self.ring
            && !ring.is_idle()
        {
            if let Err(error) = ring.wait() {
                self.failure = Some(format!("cannot wait for requests in flight: {error}"));
            }
            self.complete_requests()?;
        }
        Ok(())
    }

    fn change_medium(&mut self, path: &Path) -> Result<(), String> {
        self.replace_medium(path)
    }

    fn is_pollable(&self) -> bool {
        true
    }

    fn set_polled(&mut self, polled: bool) -> Result<(), ProtocolViolation> {
        if let Some(active) = &mut self.active {
            active.queue.set_polled(polled);
        }
        self.process_queue(0)
    }

    fn poll(&mut self) -> Result<bool, ProtocolViolation> {
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let done = self.ring.as_mut().is_some_and(Uring::has_done);
        // While a limit holds, the timer says when to look again.
        let found = done || !self.limiter.is_waiting() && active.queue.available(&active.mem)? > 0;
        if found {
            self.process_queue(0)?;
        }
        Ok(found)
    }

    fn rate_control(&self) -> Option<RateControl> {
        Some(self.limiter.control())
    }

    fn take_host_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        self.active.iter().map(|active| active.queue.state()).collect()
    }

    fn save(&self) -> Vec<u8> {
        let Disk { capacity_sectors, read_only } = self.disk;
        postcard::to_allocvec(&BlockState { capacity_sectors, read_only })
            .expect("invariant: plain numbers always serialize")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let error = |what: String| RestoreError { device: "block", what };
        let saved: BlockState = postcard::from_bytes(state).map_err(|source| error(source.to_string()))?;
        let Disk { capacity_sectors, read_only } = self.disk;
        self.medium_is_new = saved.capacity_sectors == 0 && capacity_sectors != 0;
        let same = saved.capacity_sectors == capacity_sectors || self.medium_is_new;
        if !same || saved.read_only != read_only {
            return Err(error(format!("{saved:?} does not fit the disk, which is {:?}", self.disk)));
        }
        Ok(())
    }
}

/// How a disk's file is opened.
pub fn disk_options(read_only: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK a FIFO would block here; files and disks do not mind it.
    options.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK);
    options
}

/// Opens the file and finds its size in bytes.
fn open_disk(path: &Path, read_only: bool) -> Result<(File, u64), BlockError> {
    let owned = || path.to_owned();
    let open_error = |source| BlockError::OpenDisk { path: owned(), source };
    let mut file = held::open(&disk_options(read_only), path).map_err(open_error)?;
    let kind = file.metadata().map_err(open_error)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlockError::NotADisk { path: owned() });
    }
    let size = file.seek(SeekFrom::End(0)).map_err(open_error)?;
    if !size.is_multiple_of(SECTOR_SIZE) {
        return Err(BlockError::InvalidSize { path: owned(), size });
    }
    Ok((file, size))
}

impl Block {
    /// Executes or starts what the driver has made available.
    fn take_requests(&mut self) -> Result<(), ProtocolViolation> {
        let Some(Active { mem, queue, writethrough }) = &mut self.active else {
            return Ok(());
        };
        let mut executor = Executor {
            mem,
            backend: &mut self.backend,
            disk: self.disk,
            durable: *writethrough,
            engine: &mut self.engine,
            limiter: &mut self.limiter,
            ring: &mut self.ring,
            ring_changed: &mut self.ring_changed,
            failure: &mut self.failure,
        };
        queue.process_some(mem, |chain| {
            executor.handle(chain).map_err(|what| ProtocolViolation { queue: 0, what })
        })?;
        if let Some(Err(error)) = self.ring.as_mut().map(Uring::submit) {
            self.failure = Some(format!("cannot submit requests: {error}"));
        }
        Ok(())
    }

    /// Answers what the kernel has done.
    fn complete_requests(&mut self) -> Result<(), ProtocolViolation> {
        let (Some(ring), Some(Active { mem, queue, .. })) = (&mut self.ring, &mut self.active) else {
            return Ok(());
        };
        while let Some((done, result)) = ring.reap() {
            let InFlight { head, request, status_at, data, .. } = done;
            let mut written = 0;
            if let Request::Read(range) = request {
                // A read that fails half way has filled guest pages too.
                data.mark_dirty(mem);
                written = u32::try_from(range.len).unwrap_or(u32::MAX);
            }
            let status = match result {
                Ok(()) => Status::Ok,
                Err(error) => {
                    self.failure = Some(format!("{request}: {error}"));
                    written = 0;
                    Status::IoError
                }
            };
            // The address was in guest memory when the request came, and memory does not shrink.
            let _ = mem.write_obj(status.to_byte(), status_at);
            queue.complete(mem, head, written.saturating_add(1))?;
        }
        queue.signal(mem)
    }
}

/// What the requests of one batch are executed with.
struct Executor<'a> {
    mem: &'a GuestRam,
    backend: &'a mut Backend,
    disk: Disk,
    durable: bool,
    engine: &'a mut BlockEngine,
    limiter: &'a mut RateLimiter,
    ring: &'a mut Option<Uring>,
    ring_changed: &'a mut bool,
    failure: &'a mut Option<String>,
}

impl Executor<'_> {
    /// Parses the request in `chain` and executes it, or starts it. An error is what the driver did wrong.
    fn handle(&mut self, chain: Chain<'_>) -> Result<Handled, String> {
        if self.ring.as_ref().is_some_and(Uring::is_full) {
            return Ok(Handled::NotNow);
        }
        let head = chain.head_index();
        let (readable, writable) =
            GuestBuffers::collect_both(self.mem, chain).map_err(|error| error.to_string())?;
        let mut header = [0; HEADER_BYTES];
        if !readable.copy_to(0, &mut header) {
            return Err(format!("request of {} bytes has no header", readable.len()));
        }
        let status_at = writable.len().checked_sub(1).ok_or("request has no room for its status")?;
        let data_len = readable.len().saturating_sub(HEADER_BYTES);
        let direction = request::direction(header);
        if !self.limiter.admit(direction) {
            return Ok(Handled::NotNow);
        }
        let carried = if direction == Direction::Input { status_at } else { data_len };
        self.limiter.charge(direction, u64::try_from(carried).unwrap_or(u64::MAX));

        let mut ranges = [0; MAX_RANGES_BYTES];
        let ranges = ranges.get_mut(..data_len.min(MAX_RANGES_BYTES)).unwrap_or_default();
        readable.copy_to(HEADER_BYTES, ranges);

        let raw = RawRequest { header, readable: data_len, writable: status_at, ranges };
        let data = Data { readable: &readable, start: HEADER_BYTES, writable: &writable };
        let (status, written) = match request::parse(&raw, self.disk) {
            Ok(Request::Read(range)) if self.reads_at_once(range, &writable) => {
                (Status::Ok, usize::try_from(range.len).unwrap_or(usize::MAX))
            }
            Ok(request) => {
                let Some(request) = self.start(head, request, &data, status_at) else {
                    return Ok(Handled::InFlight);
                };
                self.execute(&request, &data)
            }
            Err(status) => (status, 0),
        };
        writable.copy_from(status_at, &[status.to_byte()]);
        Ok(Handled::Done(u32::try_from(written.saturating_add(1)).unwrap_or(u32::MAX)))
    }

    /// Reads what needs no medium without the detour through the kernel's ring.
    fn reads_at_once(&mut self, range: ByteRange, target: &GuestBuffers<'_>) -> bool {
        *self.engine == BlockEngine::IoUring && self.backend.read_cached(range, target)
    }

    fn execute(&mut self, request: &Request, data: &Data<'_, '_>) -> (Status, usize) {
        match self.backend.execute(request, data, self.durable) {
            Ok(written) => (Status::Ok, written),
            Err(error) => {
                *self.failure = Some(format!("{request}: {error}"));
                (Status::IoError, 0)
            }
        }
    }

    /// Leaves `request` to the kernel, or gives it back where it is better executed at once.
    fn start(
        &mut self,
        head: u16,
        request: Request,
        data: &Data<'_, '_>,
        status_at: usize,
    ) -> Option<Request> {
        if *self.engine == BlockEngine::Sync {
            return Some(request);
        }
        let mut vecs = IoVecs::new();
        match request {
            Request::Read(_) => vecs.push_guest(data.writable, 0, status_at),
            Request::Write(_) => vecs.push_guest(data.readable, data.start, data.readable.len()),
            Request::Flush => {}
            _ => return Some(request),
        }
        let Some(status_at) = data.writable.address_of(self.mem, status_at) else {
            return Some(request);
        };
        let durable = self.durable;
        let Some(ring) = self.ring() else {
            return Some(request);
        };
        // SAFETY: only buffers of the guest are in it. The ring is drained or dropped before the guest's memory.
        let data = unsafe { vecs.detach() };
        let request = InFlight { head, request, status_at, data, durable };
        // SAFETY: as above.
        unsafe { ring.start(request) }.err()
    }

    /// The ring, made anew for a new medium; `None` where the host does not permit it.
    fn ring(&mut self) -> Option<&mut Uring> {
        if self.ring.is_none() {
            *self.ring = open_ring(self.engine, &self.backend.file, self.failure);
            *self.ring_changed = self.ring.is_some();
        }
        self.ring.as_mut()
    }
}

/// A ring for `file` if `engine` wants one; where the host does not permit it, `engine` does without and `failure` says
/// so.
fn open_ring(engine: &mut BlockEngine, file: &File, failure: &mut Option<String>) -> Option<Uring> {
    match (*engine == BlockEngine::IoUring).then(|| Uring::open(file))? {
        Ok(ring) => Some(ring),
        Err(error) => {
            *engine = BlockEngine::Sync;
            *failure = Some(format!("no io_uring here, requests are executed one by one: {error}"));
            None
        }
    }
}
