//! Entropy device (virtio 1.2, section 5.4): fills what the driver offers from the host's generator.
//!
//! The guest controls how many bytes it asks for. There may be limits, and there is nothing to save.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use super::device::{Activation, HostEvent, ProtocolViolation, RestoreError, VirtioDevice, timer_of};
use super::guest_buffers::{self, GuestBuffers};
use super::queue::{ActiveQueue, Chain, Handled};
use crate::GuestRam;
use crate::rate::{Direction, RateLimiter};

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
    /// Bytes and requests that it carries, if that is limited.
    limiter: Option<RateLimiter>,
    /// Present from `activate` to `reset`.
    active: Option<(GuestRam, ActiveQueue)>,
}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that gives no more than `limiter` admits.
    pub fn limited(limiter: RateLimiter) -> Self {
        Self { limiter: Some(limiter), active: None }
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
        let limiter = &mut self.limiter;
        queue.process_some(mem, |chain| {
            if !limiter.as_mut().is_none_or(|limiter| limiter.admit(Direction::Input)) {
                return Ok(Handled::NotNow);
            }
            let given = fill(mem, chain).map_err(|what| ProtocolViolation { queue: 0, what })?;
            if let Some(limiter) = limiter {
                limiter.charge(Direction::Input, given.into());
            }
            Ok(Handled::Done(given))
        })
    }

    fn host_events(&self) -> Vec<HostEvent> {
        timer_of(self.limiter.as_ref())
    }

    fn process_host_event(&mut self, _token: u32, _events: EventSet) -> Result<(), ProtocolViolation> {
        self.limiter.iter_mut().for_each(RateLimiter::process_timer);
        self.process_queue(0)
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
    let buffers = GuestBuffers::collect(mem, chain, guest_buffers::Direction::Writable)
        .map_err(|error| error.to_string())?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::{BucketConfig, RateLimits, Rates};
    use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, register, status};

    #[test]
    fn buffers_are_filled_to_the_last_byte() {
        let mut driver = FakeDriver::start(Rng::new(), 0);
        let buffers = [Buffer::writable(BUFFERS, 1000), Buffer::writable(BUFFERS + 2000, 1000)];
        let head = driver.submit(0, &buffers);
        assert_eq!(driver.take_used(0), Some((head, 2000)));
        assert!(driver.take_interrupt());
        for start in [BUFFERS, BUFFERS + 984, BUFFERS + 2000, BUFFERS + 2984] {
            assert_ne!(driver.peek(start, 16), [0; 16], "{start:#x}");
        }
        assert_eq!(driver.peek(BUFFERS + 1000, 1000), [0; 1000]);
        assert_eq!(driver.peek(BUFFERS + 3000, 100), [0; 100]);
    }

    #[test]
    fn two_requests_get_different_bytes() {
        let mut driver = FakeDriver::start(Rng::new(), 0);
        driver.submit(0, &[Buffer::writable(BUFFERS, 32)]);
        let first = driver.peek(BUFFERS, 32);
        driver.submit(0, &[Buffer::writable(BUFFERS, 32)]);
        assert_ne!(driver.peek(BUFFERS, 32), first);
    }

    #[test]
    fn what_is_over_the_limit_waits_for_the_timer() {
        let bucket = BucketConfig { size: 1, one_time_burst: 0, refill_time_ms: 3_600_000 };
        let ops = Rates { ops: Some(bucket), ..Rates::default() };
        let limits = RateLimits { total: ops, ..RateLimits::default() };
        let limiter = RateLimiter::new(&limits).unwrap();
        let control = limiter.control();
        let mut driver = FakeDriver::start(Rng::limited(limiter), 0);
        for wanted in [Some((0, 8)), None] {
            driver.submit(0, &[Buffer::writable(BUFFERS, 8)]);
            let used = driver.take_used(0);
            assert_eq!(used.map(|(_, len)| len), wanted.map(|(_, len): (u16, u32)| len));
        }
        // Makes it fire.
        control.set(RateLimits::default());
        driver.transport.process_host_event(0, EventSet::IN);
        assert_eq!(driver.take_used(0).map(|(_, len)| len), Some(8));
    }

    #[test]
    fn one_request_gets_a_bounded_number_of_bytes() {
        let mut driver = FakeDriver::start(Rng::new(), 0);
        driver.submit(0, &[Buffer::writable(BUFFERS, 1 << 20)]);
        assert_eq!(driver.take_used(0).unwrap().1, 64 << 10);
        assert_eq!(driver.peek(BUFFERS + (64 << 10), 64), [0; 64]);
    }

    #[test]
    fn a_buffer_that_cannot_be_written_breaks_the_protocol() {
        for buffer in [Buffer::readable(BUFFERS, 16), Buffer::writable(1 << 40, 16)] {
            let mut driver = FakeDriver::start(Rng::new(), 0);
            driver.submit(0, &[buffer]);
            assert_eq!(driver.read(register::STATUS), 0xf | status::NEEDS_RESET);
            assert_eq!(driver.take_used(0), None);
        }
    }

    #[test]
    fn only_an_empty_state_is_restored() {
        let mut rng = Rng::new();
        assert!(rng.restore(&rng.save()).is_ok());
        assert!(rng.restore(&[0]).is_err());
    }
}
