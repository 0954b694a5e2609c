//! Persistent memory device (virtio 1.2, section 5.19): a file that the guest sees as memory.
//!
//! The VMM maps the file into the guest's physical address space, so the guest reads it without a request
//! and all VMs of one file share its page cache. This device only says where the window is and, for a
//! window that may be written, flushes it. The guest controls the requests, each one `fdatasync` at most.

use std::fs::File;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use super::device::{
    Activation, HostEvent, ProtocolViolation, RestoreError, VirtioDevice, read_space, timer_of,
};
use super::guest_buffers::GuestBuffers;
use super::queue::{ActiveQueue, Chain, Handled};
use crate::GuestRam;
use crate::rate::{Direction, RateControl, RateLimiter};

/// Where the file is in guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Window {
    /// First guest physical address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What the guest writes does not reach the file.
    pub read_only: bool,
}

/// The device.
pub struct Pmem {
    window: Window,
    /// Synced by a flush, unless the window is read-only.
    file: File,
    /// Flushes that it carries, if that is limited: each counts as all bytes of the window.
    limiter: Option<RateLimiter>,
    /// What the host last failed at, until somebody asks.
    failure: Option<String>,
    /// Present from `activate` to `reset`.
    active: Option<(GuestRam, ActiveQueue)>,
}

impl Pmem {
    /// A device for `file`, which the VMM has mapped at `window`.
    pub fn new(file: File, window: Window) -> Self {
        Self { window, file, limiter: None, failure: None, active: None }
    }

    /// One that flushes no more than `limiter` admits.
    pub fn limited(file: File, window: Window, limiter: RateLimiter) -> Self {
        Self { limiter: Some(limiter), ..Self::new(file, window) }
    }
}

impl VirtioDevice for Pmem {
    fn name(&self) -> &'static str {
        "pmem"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 16];
        let (start, size) = space.split_at_mut(8);
        start.copy_from_slice(&self.window.start.to_le_bytes());
        size.copy_from_slice(&self.window.size.to_le_bytes());
        read_space(&space, offset, data);
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
        let file = (!self.window.read_only).then_some(&self.file);
        let (failure, limiter, bytes) = (&mut self.failure, &mut self.limiter, self.window.size);
        queue.process_some(mem, |chain| {
            if let Some(limiter) = limiter {
                if !limiter.admit(Direction::Output) {
                    return Ok(Handled::NotNow);
                }
                limiter.charge(Direction::Output, bytes);
            }
            let answered = answer(mem, chain, file, failure);
            answered.map(Handled::Done).map_err(|what| ProtocolViolation { queue: 0, what })
        })
    }

    fn host_events(&self) -> Vec<HostEvent> {
        timer_of(self.limiter.as_ref())
    }

    fn process_host_event(&mut self, _token: u32, _events: EventSet) -> Result<(), ProtocolViolation> {
        self.limiter.iter_mut().for_each(RateLimiter::process_timer);
        self.process_queue(0)
    }

    fn rate_control(&self) -> Option<RateControl> {
        self.limiter.as_ref().map(RateLimiter::control)
    }

    fn take_host_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        self.active.iter().map(|(_, queue)| queue.state()).collect()
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_allocvec(&self.window).expect("invariant: plain numbers always serialize")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let error = |what: String| RestoreError { device: "pmem", what };
        let saved: Window = postcard::from_bytes(state).map_err(|source| error(source.to_string()))?;
        if saved != self.window {
            return Err(error(format!("{saved:x?} does not fit the file, which is at {:x?}", self.window)));
        }
        Ok(())
    }
}

/// Answers the request in `chain` (section 5.19.6) and returns the number of bytes written to it. An error is
/// what the driver did wrong, and `failure` what the host did.
fn answer(
    mem: &GuestRam,
    chain: Chain<'_>,
    file: Option<&File>,
    failure: &mut Option<String>,
) -> Result<u32, String> {
    let (readable, writable) = GuestBuffers::collect_both(mem, chain).map_err(|error| error.to_string())?;
    let mut kind = [0; 4];
    if !readable.copy_to(0, &mut kind) {
        return Err(format!("request of {} bytes has no type", readable.len()));
    }
    if writable.len() < RESPONSE_BYTES {
        return Err(format!("response of {} bytes has no room for its status", writable.len()));
    }
    let status = match (u32::from_le_bytes(kind), file.map(File::sync_data)) {
        (REQUEST_FLUSH, Some(Err(error))) => {
            *failure = Some(format!("flush persistent memory: {error}"));
            STATUS_FAILED
        }
        (REQUEST_FLUSH, _) => STATUS_OK,
        _ => STATUS_FAILED,
    };
    writable.copy_from(0, &status.to_le_bytes());
    Ok(RESPONSE_BYTES as u32)
}

/// VIRTIO_PMEM_REQ_TYPE_FLUSH.
const REQUEST_FLUSH: u32 = 0;
/// The request is done.
const STATUS_OK: u32 = 0;
/// The request failed or is unknown.
const STATUS_FAILED: u32 = u32::MAX;
/// Bytes of a response.
const RESPONSE_BYTES: usize = 4;
/// Number of descriptors in the queue; with a flush in each pair, how often one call syncs the file.
const QUEUE_SIZE: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, register, status};

    const RESPONSE: u64 = BUFFERS + 0x100;
    const WINDOW: Window = Window { start: 0x1_4000_0000, size: 0x60_0000, read_only: false };

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    fn request(driver: &mut FakeDriver, kind: u32) -> u32 {
        driver.fill(BUFFERS, &kind.to_le_bytes());
        driver.fill(RESPONSE, &[0xee; 4]);
        driver.submit(0, &[Buffer::readable(BUFFERS, 4), Buffer::writable(RESPONSE, 4)]);
        assert_eq!(driver.take_used(0).map(|(_, len)| len), Some(4));
        u32::from_le_bytes(driver.peek(RESPONSE, 4).try_into().unwrap())
    }

    #[test]
    fn configuration_space_says_where_the_window_is() {
        let driver = FakeDriver::new(Pmem::new(file(), WINDOW));
        let words = [0, 4, 8, 12, 16].map(|offset| driver.read(register::CONFIG + offset));
        assert_eq!(words, [0x4000_0000, 1, 0x60_0000, 0, 0]);
        assert_eq!(driver.read(register::DEVICE_ID), 27);
    }

    #[test]
    fn a_flush_is_answered_and_anything_else_refused() {
        for read_only in [false, true] {
            let mut driver = FakeDriver::start(Pmem::new(file(), Window { read_only, ..WINDOW }), 0);
            assert_eq!(request(&mut driver, 0), 0);
            assert_eq!(request(&mut driver, 1), u32::MAX);
            assert_eq!(driver.transport.host_failures(), 0);
        }
    }

    #[test]
    fn a_failing_flush_is_told_to_both_sides() {
        let null = || File::open("/dev/null").unwrap();
        let mut driver = FakeDriver::start(Pmem::new(null(), WINDOW), 0);
        assert_eq!(request(&mut driver, 0), u32::MAX);
        assert_eq!(driver.transport.host_failures(), 1);
        let window = Window { read_only: true, ..WINDOW };
        let mut driver = FakeDriver::start(Pmem::new(null(), window), 0);
        assert_eq!(request(&mut driver, 0), 0, "nothing to sync");
    }

    #[test]
    fn chains_that_are_no_requests_break_the_protocol() {
        let (readable, writable) = (Buffer::readable(BUFFERS, 4), Buffer::writable(RESPONSE, 4));
        for chain in [
            vec![readable],
            vec![writable],
            vec![Buffer::readable(BUFFERS, 3), writable],
            vec![readable, Buffer::writable(RESPONSE, 3)],
            vec![readable, Buffer::writable(WINDOW.start, 4)],
            vec![writable, readable],
        ] {
            let mut driver = FakeDriver::start(Pmem::new(file(), WINDOW), 0);
            driver.submit(0, &chain);
            assert_eq!(driver.read(register::STATUS), 0xf | status::NEEDS_RESET, "{chain:?}");
            assert_eq!(driver.take_used(0), None);
        }
    }

    #[test]
    fn only_the_state_of_the_same_window_is_restored() {
        let driver = FakeDriver::start(Pmem::new(file(), WINDOW), 0);
        let state = driver.transport.save().unwrap();
        let restored = FakeDriver::with_mem(Pmem::new(file(), WINDOW), driver.mem.clone());
        restored.transport.restore(&state).unwrap();
        assert_eq!(restored.read(register::STATUS), 0xf);
        for window in [
            Window { start: 0, ..WINDOW },
            Window { size: 0, ..WINDOW },
            Window { read_only: true, ..WINDOW },
        ] {
            assert!(FakeDriver::new(Pmem::new(file(), window)).transport.restore(&state).is_err());
        }
    }
}
