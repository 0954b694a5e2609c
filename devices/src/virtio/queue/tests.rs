//! The queue against a driver that keeps the rules, and one that does not.

use super::*;
use crate::virtio::testing::{BUFFERS, Buffer, CountingInterrupt, FakeQueue, guest_ram};

const SIZE: u16 = 8;
const BASE: u64 = 0x1_0000;
/// Offsets of the rings from the start of a [`FakeQueue`].
const AVAIL: u64 = BASE + 0x8000;

struct Rig {
    mem: GuestRam,
    driver: FakeQueue,
    queue: ActiveQueue,
    interrupt: Arc<CountingInterrupt>,
}

impl Rig {
    fn new(event_idx: bool) -> Self {
        let mem = guest_ram(2 << 20);
        let driver = FakeQueue::new(&mem, BASE, SIZE);
        let interrupt = CountingInterrupt::new();
        let queue = ActiveQueue::new(3, driver.to_queue(event_idx), Arc::clone(&interrupt) as Arc<_>);
        Self { mem, driver, queue, interrupt }
    }

    fn add(&mut self) -> u16 {
        self.driver.add(&[Buffer::readable(BUFFERS, 16)])
    }

    fn process(&mut self) -> Result<(), ProtocolViolation> {
        self.queue.process(&self.mem, |chain| Ok(chain.count() as u32))
    }

    /// Says that the driver wants to hear when used element `index` is there.
    fn set_used_event(&self, index: u16) {
        self.mem.write_obj(index, GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE))).unwrap();
    }

    fn reschedules(&self) -> u32 {
        self.interrupt.reschedules.load(Ordering::Relaxed)
    }
}

#[test]
fn chains_are_completed_in_order_and_signalled_once() {
    let mut rig = Rig::new(false);
    let heads = [rig.add(), rig.add(), rig.add()];
    rig.process().unwrap();
    assert_eq!(heads.map(|_| rig.driver.take_used().unwrap()), heads.map(|head| (head, 1)));
    assert_eq!(rig.interrupt.used_count(), 1);
    rig.process().unwrap();
    assert_eq!(rig.interrupt.used_count(), 1, "nothing new");
    assert_eq!(rig.reschedules(), 0);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut rig = Rig::new(false);
    rig.mem.write_obj(1u16, GuestAddress(AVAIL)).unwrap();
    rig.add();
    rig.process().unwrap();
    assert!(rig.driver.take_used().is_some());
    assert_eq!(rig.interrupt.used_count(), 0);
}

#[test]
fn with_event_idx_the_driver_says_at_which_element_it_wants_the_interrupt() {
    let mut rig = Rig::new(true);
    for (event, interrupts) in [(0, 1), (2, 1), (2, 2), (2, 2), (4, 3)] {
        rig.set_used_event(event);
        rig.add();
        rig.process().unwrap();
        assert_eq!(rig.interrupt.used_count(), interrupts, "{event}");
    }
}

#[test]
fn work_in_one_call_is_bounded() {
    let mut rig = Rig::new(false);
    let driver = std::cell::RefCell::new(rig.driver);
    driver.borrow_mut().add(&[Buffer::readable(BUFFERS, 16)]);
    let mut handled = 0;
    // A driver that adds a chain whenever one is handled would keep the device for ever.
    rig.queue
        .process(&rig.mem, |_| {
            handled += 1;
            driver.borrow_mut().add(&[Buffer::readable(BUFFERS, 16)]);
            Ok(0)
        })
        .unwrap();
    assert_eq!(handled, SIZE);
    assert_eq!(rig.interrupt.reschedules.load(Ordering::Relaxed), 1);
    assert_eq!(rig.interrupt.used_count(), 1);
}

#[test]
fn a_chain_added_while_notifications_were_off_is_not_missed() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(event_idx);
        rig.queue.disable_notifications(&rig.mem).unwrap();
        rig.add();
        assert!(rig.queue.enable_notifications(&rig.mem).unwrap());
        rig.process().unwrap();
        assert!(!rig.queue.enable_notifications(&rig.mem).unwrap());
    }
}

#[test]
fn chains_can_be_given_back() {
    let mut rig = Rig::new(false);
    let heads = [rig.add(), rig.add()];
    for _ in 0..2 {
        assert_eq!(rig.queue.available(&rig.mem).unwrap(), 2);
        for head in heads {
            assert_eq!(rig.queue.pop(&rig.mem).unwrap().unwrap().head_index(), head);
        }
        assert!(rig.queue.pop(&rig.mem).unwrap().is_none());
        rig.queue.undo_pop(2);
    }
}

#[test]
fn indices_wrap_around() {
    const START: u16 = u16::MAX - 20;
    let mut rig = Rig::new(true);
    rig.driver = FakeQueue::starting_at(&rig.mem, BASE, SIZE, START);
    let mut queue = rig.driver.to_queue(true);
    queue.set_next_avail(START);
    queue.set_next_used(START);
    rig.queue = ActiveQueue::new(0, queue, Arc::clone(&rig.interrupt) as Arc<_>);
    for round in 0..40 {
        rig.set_used_event(START.wrapping_add(round));
        let head = rig.add();
        rig.process().unwrap();
        assert_eq!(rig.driver.take_used(), Some((head, 1)), "{round}");
    }
    assert_eq!(rig.interrupt.used_count(), 40);
}

#[test]
fn an_index_too_far_ahead_breaks_the_protocol() {
    let mut rig = Rig::new(false);
    rig.mem.write_obj(SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
    let violation = rig.process().unwrap_err();
    assert_eq!((violation.queue, rig.interrupt.used_count()), (3, 0));
}

#[test]
fn a_head_outside_the_table_breaks_the_protocol() {
    let mut rig = Rig::new(false);
    rig.driver.publish(SIZE);
    let violation = rig.process().unwrap_err();
    assert!(violation.what.contains("head 8"), "{violation}");
    assert!(rig.driver.take_used().is_none());
}

#[test]
fn a_queue_that_is_not_ready_has_no_chains() {
    let mut rig = Rig::new(false);
    rig.add();
    let mut queue = rig.driver.to_queue(false);
    queue.set_ready(false);
    rig.queue = ActiveQueue::new(0, queue, Arc::clone(&rig.interrupt) as Arc<_>);
    rig.process().unwrap();
    assert!(rig.driver.take_used().is_none());
    assert_eq!(rig.queue.available(&rig.mem).unwrap(), 0);
}
