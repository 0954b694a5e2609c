//! Frames over a limit wait.

use rustix::event::{PollFd, PollFlags};

use super::*;
use crate::rate::{BucketConfig, Rates};

/// One frame in 60 ms.
fn slow() -> Rates {
    Rates { bandwidth: None, ops: Some(BucketConfig { size: 1, one_time_burst: 0, refill_time_ms: 60 }) }
}

impl<T: FrameIo> Guest<T> {
    fn wait_for_timer(&mut self) {
        let fd = self.device.host_events().iter().find(|event| event.token == TIMER).unwrap().fd;
        // SAFETY: the device owns the descriptor and lives on.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
        self.device.process_host_event(TIMER, EventSet::IN).unwrap();
    }
}

#[test]
fn frames_over_the_limit_wait_each_way_for_itself() {
    let (mut guest, wire) = limited(RateLimits { output: slow(), ..RateLimits::default() });
    for _ in 0..2 {
        guest.queue_tx(&with_header(&frame(60)));
    }
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.counter(|counters| &counters.tx_frames), 1);
    assert_eq!(guest.polled(), EventSet::IN, "a TAP that takes frames is polled for room");
    let head = guest.give_rx(0, 2048);
    wire.send(&with_header(&frame(100))).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used(), Some((head, 112)), "receiving waits for sending");
    guest.wait_for_timer();
    assert_eq!(guest.counter(|counters| &counters.tx_frames), 2);
}

#[test]
fn frames_for_the_guest_stay_in_the_tap_until_they_may_come() {
    let (mut guest, wire) = limited(RateLimits { input: slow(), ..RateLimits::default() });
    for index in 0..2 {
        guest.give_rx(index, 2048);
        wire.send(&with_header(&frame(100))).unwrap();
    }
    guest.readable();
    assert!(guest.rx.take_used().is_some() && guest.rx.take_used().is_none());
    assert_eq!(guest.polled(), EventSet::empty(), "the TAP is polled for frames that may not come");
    guest.wait_for_timer();
    assert!(guest.rx.take_used().is_some());
}
