//! Frames to the guest.

use super::*;

#[test]
fn a_frame_goes_into_one_buffer() {
    let (mut guest, wire) = ready();
    let head = guest.give_rx(0, 2048);
    wire.send(&with_header(&frame(100))).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used(), Some((head, 112)));
    let bytes = guest.rx_bytes(0, 112);
    assert_eq!(bytes[10..12], [1, 0]);
    assert_eq!(bytes[12..], frame(100));
    assert_eq!(guest.interrupt.used_count(), 1);
}

#[test]
fn a_frame_is_spread_over_merged_buffers() {
    let (mut guest, wire) = ready();
    for index in 0..8 {
        guest.give_rx(index, 1000);
    }
    // From the second one on, the device expects a long frame and gives the kernel enough buffers.
    for first in [0, 3] {
        wire.send(&with_header(&frame(2500))).unwrap();
        guest.readable();
        let lens: Vec<u32> = std::iter::from_fn(|| guest.rx.take_used()).map(|used| used.1).collect();
        assert_eq!(lens, [1000, 1000, 512]);
        let bytes: Vec<u8> =
            (first..).zip(&lens).flat_map(|(index, len)| guest.rx_bytes(index, *len as usize)).collect();
        assert_eq!(bytes[10..12], [3, 0]);
        assert_eq!(bytes[12..], frame(2500));
    }
    // Buffers that were collected and not needed serve the frames that follow.
    for index in 6..8 {
        wire.send(&with_header(&frame(60))).unwrap();
        guest.readable();
        assert_eq!(guest.rx.take_used(), Some((index, 72)));
    }
}

#[test]
fn the_longest_frame_arrives_whole() {
    let (mut guest, wire) = ready();
    for index in 0..64 {
        guest.give_rx(index, 1536);
    }
    wire.send(&with_header(&frame(MAX_FRAME))).unwrap();
    guest.readable();
    let lens: Vec<u32> = std::iter::from_fn(|| guest.rx.take_used()).map(|used| used.1).collect();
    assert_eq!(lens.iter().sum::<u32>() as usize, HEADER_SIZE + MAX_FRAME);
    let bytes: Vec<u8> =
        (0..).zip(&lens).flat_map(|(index, len)| guest.rx_bytes(index, *len as usize)).collect();
    assert_eq!(bytes[10..12], (lens.len() as u16).to_le_bytes());
    assert_eq!(bytes[12..], frame(MAX_FRAME));
}

#[test]
fn the_header_may_be_in_pieces() {
    let (mut guest, wire) = ready();
    let at = RX_BUFFERS;
    guest.rx.add(&[Buffer::writable(at, 5), Buffer::writable(at + 5, 6), Buffer::writable(at + 11, 200)]);
    wire.send(&with_header(&frame(100))).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used().unwrap().1, 112);
    let bytes = guest.rx_bytes(0, 112);
    assert_eq!(bytes[10..12], [1, 0]);
    assert_eq!(bytes[12..], frame(100));
}

#[test]
fn without_buffers_the_tap_is_left_alone() {
    let (mut guest, wire) = ready();
    assert_eq!(guest.polled(), EventSet::IN);
    guest.device.host_events_changed();
    wire.send(&with_header(&frame(100))).unwrap();
    guest.readable();
    assert_eq!(guest.polled(), EventSet::empty());
    assert!(guest.device.host_events_changed());
    guest.give_rx(0, 2048);
    guest.device.process_queue(RX).unwrap();
    assert_eq!(guest.rx.take_used().unwrap().1, 112);
    assert_eq!(guest.polled(), EventSet::empty());
    guest.give_rx(1, 2048);
    guest.device.process_queue(RX).unwrap();
    assert_eq!(guest.polled(), EventSet::IN);
    assert!(guest.device.host_events_changed());
    assert!(!guest.device.host_events_changed());
}

#[test]
fn a_frame_waits_until_there_are_enough_buffers() {
    let (mut guest, wire) = ready();
    guest.give_rx(0, 1000);
    guest.give_rx(1, 1000);
    wire.send(&with_header(&frame(2500))).unwrap();
    wire.send(&with_header(&frame(60))).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used(), None);
    assert_eq!(guest.polled(), EventSet::empty());
    guest.give_rx(2, 1000);
    guest.give_rx(3, 1000);
    guest.device.process_queue(RX).unwrap();
    let lens: Vec<u32> = std::iter::from_fn(|| guest.rx.take_used()).map(|used| used.1).collect();
    assert_eq!(lens, [1000, 1000, 512, 72]);
    let bytes = [guest.rx_bytes(0, 1000), guest.rx_bytes(1, 1000), guest.rx_bytes(2, 512)].concat();
    assert_eq!(bytes[12..], frame(2500));
    assert_eq!(guest.rx_bytes(3, 72)[12..], frame(60));
}

#[test]
fn a_frame_that_no_buffers_can_hold_is_dropped() {
    let (mut guest, wire) = ready();
    for index in 0..256 {
        guest.rx.add(&[Buffer::writable(RX_BUFFERS + index * 16, 12)]);
    }
    wire.send(&with_header(&frame(4000))).unwrap();
    wire.send(&with_header(&frame(60))).unwrap();
    guest.readable();
    assert_eq!(guest.counter(|counters| &counters.rx_dropped), 1);
    assert_eq!(std::iter::from_fn(|| guest.rx.take_used()).count(), 6);
}

#[test]
fn without_merging_a_frame_has_one_buffer_or_none() {
    let (mut guest, wire, _) = wired();
    let features = guest.device.features() & !(1 << VIRTIO_NET_F_MRG_RXBUF);
    guest.activate(features);
    guest.give_rx(0, 1000);
    guest.give_rx(1, 1000);
    wire.send(&with_header(&frame(1500))).unwrap();
    wire.send(&with_header(&frame(60))).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used(), Some((0, 72)));
    assert_eq!(guest.rx.take_used(), None);
    assert_eq!(guest.rx_bytes(0, 12)[10..], [1, 0]);
    assert_eq!(guest.counter(|counters| &counters.rx_dropped), 1);
}

#[test]
fn checksum_flags_reach_only_a_driver_that_knows_them() {
    for (without, flags) in [(0, 3), (1 << VIRTIO_NET_F_GUEST_CSUM, 0)] {
        let (mut guest, wire, _) = wired();
        let features = guest.device.features() & !without;
        guest.activate(features);
        guest.give_rx(0, 2048);
        let mut bytes = with_header(&frame(60));
        bytes[0] = 3;
        wire.send(&bytes).unwrap();
        guest.readable();
        assert_eq!(guest.rx_bytes(0, 1), [flags]);
    }
}

#[test]
fn what_is_no_frame_is_dropped() {
    let (mut guest, wire) = ready();
    guest.give_rx(0, 2048);
    wire.send(&[0; HEADER_SIZE]).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used(), None);
    assert_eq!(guest.counter(|counters| &counters.rx_dropped), 1);
}

#[test]
fn what_the_device_wrote_is_marked_dirty() {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let (mut guest, wire) = ready();
    guest.give_rx(0, 2048);
    guest.give_rx(1, 0x2000);
    wire.send(&with_header(&frame(5000))).unwrap();
    guest.readable();
    let region = guest.mem.find_region(GuestAddress(0)).unwrap();
    let dirty =
        |index: u64, offset: u64| region.bitmap().dirty_at((RX_BUFFERS + index * 0x2000 + offset) as usize);
    assert!(dirty(0, 0) && dirty(1, 0));
    assert!(!dirty(2, 0) && !dirty(1, 0x1000));
}

#[test]
fn malformed_receive_buffers_are_violations() {
    for (what, buffer) in [
        ("no header", Buffer::writable(RX_BUFFERS, 11)),
        ("readable", Buffer::readable(RX_BUFFERS, 2048)),
        ("outside memory", Buffer::writable(u64::MAX - 50, 100)),
    ] {
        let (mut guest, wire) = ready();
        guest.rx.add(&[buffer]);
        wire.send(&with_header(&frame(60))).unwrap();
        assert_eq!(guest.device.process_queue(RX).unwrap_err().queue, RX, "{what}");
    }
}

/// A TAP that always has another frame.
struct EndlessTap(std::fs::File);

impl FrameIo for EndlessTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&self, _: libc::c_uint) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn one_call_delivers_no_more_frames_than_the_queue_has_descriptors() {
    let mut guest = Guest::new(EndlessTap(std::fs::File::open("/dev/zero").unwrap()));
    let features = guest.device.features();
    guest.activate(features);
    for _ in 0..256 {
        guest.rx.add(&[Buffer::writable(RX_BUFFERS, 0x2_0000)]);
    }
    guest.device.process_queue(RX).unwrap();
    assert_eq!(std::iter::from_fn(|| guest.rx.take_used()).count(), 256);
    assert_eq!(guest.interrupt.reschedules.load(Ordering::Relaxed), 1);
    // The rescheduled call finds no buffer and stops for good.
    guest.device.process_queue(RX).unwrap();
    assert_eq!(guest.interrupt.reschedules.load(Ordering::Relaxed), 1);
    assert_eq!(guest.polled(), EventSet::empty());
}
