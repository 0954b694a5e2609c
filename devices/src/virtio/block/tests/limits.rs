//! Requests over a limit wait.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::*;
use crate::rate::{BucketConfig, Rates};

/// One request in 60 ms.
fn slow() -> Rates {
    Rates { bandwidth: None, ops: Some(BucketConfig { size: 1, one_time_burst: 0, refill_time_ms: 60 }) }
}

impl Rig {
    fn limited(limits: RateLimits) -> Self {
        Self::around(false, FLUSH_FEATURE, limits)
    }

    /// Makes two reads available.
    fn begin_two(&mut self) {
        self.header(READ, 0);
        let chain = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
        for _ in 0..2 {
            self.driver.queues[0].add(&chain);
        }
    }

    fn wait_for_timer(&mut self) {
        let events = self.driver.transport.take_host_events().unwrap();
        let timer = events.iter().find(|event| event.token == TIMER).unwrap();
        // SAFETY: the device owns the descriptor and lives on.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(timer.fd) };
        rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
        self.driver.transport.process_host_event(TIMER, EventSet::IN);
    }
}

#[test]
fn a_request_over_the_limit_waits_for_the_timer() {
    let mut rig = Rig::limited(RateLimits { input: slow(), ..RateLimits::default() });
    let start = Instant::now();
    rig.begin_two();
    rig.driver.notify(0);
    assert!(rig.driver.take_used(0).is_some());
    assert!(rig.driver.take_used(0).is_none(), "the second read did not wait");
    rig.wait_for_timer();
    assert!(rig.driver.take_used(0).is_some());
    assert!(start.elapsed() >= Duration::from_millis(50), "{:?}", start.elapsed());
    assert_eq!(rig.request(WRITE, 0, &[Buffer::readable(DATA, 512)]).0, 0, "a write counts as a read");
}

#[test]
fn a_polled_queue_over_the_limit_is_left_alone_until_then() {
    let mut rig = Rig::limited(RateLimits { total: slow(), ..RateLimits::default() });
    assert!(rig.driver.transport.start_polling());
    rig.begin_two();
    while rig.driver.transport.poll() {}
    assert!(rig.driver.take_used(0).is_some());
    assert!(rig.driver.take_used(0).is_none(), "the second read did not wait");
    rig.wait_for_timer();
    assert!(rig.driver.take_used(0).is_some());
}
