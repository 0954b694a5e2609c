//! Frames from the guest.

use super::*;

#[test]
fn frames_leave_from_guest_memory_in_order() {
    let (mut guest, wire) = ready();
    let at = TX_BUFFERS;
    let first = with_header(&frame(700));
    guest.mem.write_slice(&first, GuestAddress(at)).unwrap();
    let rest = first.len() as u32 - 300;
    guest.tx.add(&[
        Buffer::readable(at, 12),
        Buffer::readable(at + 12, 288),
        Buffer::readable(at + 300, rest),
    ]);
    let second = with_header(&frame(60));
    guest.mem.write_slice(&second, GuestAddress(at + 0x1000)).unwrap();
    guest.tx.add(&[Buffer::readable(at + 0x1000, second.len() as u32)]);
    guest.device.process_queue(TX).unwrap();
    let mut bytes = [0; 2000];
    let count = wire.recv(&mut bytes).unwrap();
    assert_eq!(bytes[..count], first);
    let count = wire.recv(&mut bytes).unwrap();
    assert_eq!(bytes[..count], second);
    assert_eq!(guest.tx.take_used(), Some((0, 0)));
    assert_eq!(guest.tx.take_used(), Some((3, 0)));
    assert_eq!(guest.counter(|counters| &counters.tx_frames), 2);
}

#[test]
fn a_full_tap_holds_frames_back_and_loses_none() {
    let (mut guest, wire) = ready();
    for number in 0..200u8 {
        let bytes = with_header(&[number; 1000]);
        let at = TX_BUFFERS + u64::from(number) * 0x400;
        guest.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
        guest.tx.add(&[Buffer::readable(at, bytes.len() as u32)]);
    }
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.polled(), EventSet::IN | EventSet::OUT);
    let mut bytes = [0; 2000];
    for number in 0..200 {
        if wire.recv(&mut bytes).is_err() {
            guest.device.process_host_event(0, EventSet::OUT).unwrap();
            wire.recv(&mut bytes).unwrap();
        }
        assert_eq!(bytes[HEADER_SIZE], number);
    }
    guest.device.process_host_event(0, EventSet::OUT).unwrap();
    assert_eq!(guest.polled(), EventSet::IN);
    assert_eq!(std::iter::from_fn(|| guest.tx.take_used()).count(), 200);
}

#[test]
fn a_frame_that_the_host_refuses_is_lost_and_counted() {
    let (mut guest, wire) = ready();
    drop(wire);
    let head = guest.queue_tx(&with_header(&frame(60)));
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.tx.take_used(), Some((head, 0)));
    assert_eq!(guest.counter(|counters| &counters.tx_dropped), 1);
    let failure = guest.device.take_host_failure().unwrap();
    assert!(failure.starts_with("cannot write to the TAP: "), "{failure}");
    assert_eq!(guest.device.take_host_failure(), None);
}

#[test]
fn malformed_frames_are_violations() {
    let too_long = (HEADER_SIZE + MAX_FRAME + 1) as u32;
    for (what, buffer) in [
        ("no header", Buffer::readable(TX_BUFFERS, 11)),
        ("too long", Buffer::readable(TX_BUFFERS, too_long)),
        ("writable", Buffer::writable(TX_BUFFERS, 100)),
        ("outside memory", Buffer::readable(0x40_0000 - 50, 100)),
    ] {
        let (mut guest, _wire) = ready();
        guest.tx.add(&[buffer]);
        assert_eq!(guest.device.process_queue(TX).unwrap_err().queue, TX, "{what}");
    }
}

#[test]
fn a_chain_that_loops_is_a_violation() {
    let (mut guest, _wire) = ready();
    guest.tx.write_descriptor(0, Buffer::readable(TX_BUFFERS, 1), 1, 0);
    guest.tx.publish(0);
    assert_eq!(guest.device.process_queue(TX).unwrap_err().what, "broken descriptor chain");
}
