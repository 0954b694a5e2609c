//! A guest's driver in miniature; a datagram socket stands in for the TAP, except in the last test.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::{Bytes, GuestAddress};

use super::header::{HEADER_SIZE, MAX_FRAME};
use super::*;
use crate::virtio::fake_queue::{Buffer, CountingInterrupt, FakeQueue, guest_ram};

const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x30_0000;
const IDENTITY: NetIdentity = NetIdentity { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1400) };

/// Frames go to and from the other end of a socket pair.
struct FakeTap {
    socket: UnixDatagram,
    offloads: Arc<AtomicU32>,
}

impl FrameIo for FakeTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn set_offloads(&self, flags: libc::c_uint) -> io::Result<()> {
        self.offloads.store(flags, Ordering::Relaxed);
        Ok(())
    }
}

struct Guest<T: FrameIo> {
    mem: GuestRam,
    device: Net<T>,
    rx: FakeQueue,
    tx: FakeQueue,
    interrupt: Arc<CountingInterrupt>,
}

impl<T: FrameIo> Guest<T> {
    fn new(tap: T) -> Self {
        let mem = guest_ram(0x40_0000);
        Self {
            rx: FakeQueue::new(&mem, 0x1_0000, 256),
            tx: FakeQueue::new(&mem, 0x2_0000, 256),
            interrupt: CountingInterrupt::new(),
            device: Net::new(tap, IDENTITY),
            mem,
        }
    }

    fn activate(&mut self, features: u64) {
        self.device.activate(Activation {
            mem: self.mem.clone(),
            queues: [&self.rx, &self.tx].map(|queue| queue.to_queue(true)).into(),
            acknowledged_features: features,
            interrupt: self.interrupt.clone(),
        });
    }

    fn give_rx(&mut self, index: u64, len: u32) -> u16 {
        self.rx.add(&[Buffer::writable(RX_BUFFERS + index * 0x2000, len)])
    }

    fn rx_bytes(&self, index: u64, len: usize) -> Vec<u8> {
        guest_bytes(&self.mem, index, len)
    }

    fn readable(&mut self) {
        self.device.process_host_event(0, EventSet::IN).unwrap();
    }

    fn polled(&self) -> EventSet {
        self.device.host_events().first().map_or(EventSet::empty(), |event| event.events)
    }

    fn queue_tx(&mut self, bytes: &[u8]) -> u16 {
        self.mem.write_slice(bytes, GuestAddress(TX_BUFFERS)).unwrap();
        self.tx.add(&[Buffer::readable(TX_BUFFERS, bytes.len() as u32)])
    }

    fn counter(&self, select: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        select(&self.device.counters()).load(Ordering::Relaxed)
    }
}

fn guest_bytes(mem: &GuestRam, index: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(RX_BUFFERS + index * 0x2000)).unwrap();
    bytes
}

/// A guest, and the host's end of its wire.
fn wired() -> (Guest<FakeTap>, UnixDatagram, Arc<AtomicU32>) {
    let (socket, wire) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let offloads = Arc::new(AtomicU32::new(0));
    (Guest::new(FakeTap { socket, offloads: offloads.clone() }), wire, offloads)
}

/// As [`wired`], with a driver that takes all features.
fn ready() -> (Guest<FakeTap>, UnixDatagram) {
    let (mut guest, wire, _) = wired();
    let features = guest.device.features();
    guest.activate(features);
    (guest, wire)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_SIZE], frame].concat()
}

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

#[test]
fn a_chain_that_loops_is_a_violation() {
    let (mut guest, _wire) = ready();
    guest.tx.write_descriptor(0, Buffer::readable(TX_BUFFERS, 1), 1, 0);
    guest.tx.publish(0);
    assert_eq!(guest.device.process_queue(TX).unwrap_err().what, "broken descriptor chain");
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

#[test]
fn offloads_follow_the_driver() {
    let (mut guest, _wire, offloads) = wired();
    let features = guest.device.features();
    guest.activate(features);
    assert_ne!(offloads.load(Ordering::Relaxed), 0);
    guest.device.reset();
    assert!(guest.device.host_events().is_empty());
    assert!(guest.device.queue_states().is_empty());
    guest.activate(features & !(1 << VIRTIO_NET_F_GUEST_CSUM));
    assert_eq!(offloads.load(Ordering::Relaxed), 0);
}

#[test]
fn configuration_space_has_the_identity_and_survives_a_restore() {
    let (guest, _wire, _) = wired();
    let mut config = [0xff; 14];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x78, 0x05, 0, 0]);
    let (mut other, _wire, _) = wired();
    other.device.identity.mac = [9; 6];
    other.device.restore(&guest.device.save()).unwrap();
    assert_eq!(other.device.identity, IDENTITY);
    assert!(other.device.restore(&[1, 2, 3]).is_err());
}

/// Moves this thread into a network namespace of its own; false, said aloud, without the privilege.
fn own_network() -> bool {
    // SAFETY: plain system call; only this test's thread changes its namespace.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !moved {
        println!("skipped: no privilege to make a network namespace and a TAP");
    }
    moved
}

/// Sets the interface up.
fn bring_up(name: &str) {
    // SAFETY: plain system call.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, source) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = source as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`; the descriptor is closed after its only use.
    unsafe {
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request), 0);
        libc::close(socket);
    }
}

/// A packet socket that sees what is on the interface and can put frames on it.
fn packet_socket(name: &str) -> std::fs::File {
    use std::os::fd::FromRawFd;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system calls with a valid address of the given length and a new descriptor.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, protocol.into());
        assert!(fd >= 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        let name = std::ffi::CString::new(name).unwrap();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
        std::fs::File::from_raw_fd(fd)
    }
}

#[test]
fn frames_pass_a_real_tap_both_ways() {
    use std::io::{Read, Write};
    if !own_network() {
        return;
    }
    let tap = Tap::from_fd(Tap::create("lighter-test0").unwrap()).unwrap();
    assert!(matches!(Tap::create("lighter-test0"), Err(tap::TapError::Attach { .. })));
    bring_up("lighter-test0");
    let mut host = packet_socket("lighter-test0");
    let mut guest = Guest::new(tap);
    let features = guest.device.features();
    guest.activate(features);
    for index in 0..64 {
        guest.give_rx(index, 2048);
    }
    // A type that no protocol of the host answers to.
    let ethernet = [[0xff; 6].as_slice(), &IDENTITY.mac, &[0x88, 0xb5], &[7; 50]].concat();
    guest.queue_tx(&with_header(&ethernet));
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.counter(|counters| &counters.tx_frames), 1);
    let mut bytes = [0; 2000];
    let seen = std::iter::from_fn(|| host.read(&mut bytes).ok().map(|count| bytes[..count].to_vec()))
        .any(|frame| frame == ethernet);
    assert!(seen, "the host did not see the guest's frame");

    host.write_all(&ethernet).unwrap();
    guest.readable();
    let mut index = 0;
    let seen = std::iter::from_fn(|| guest.rx.take_used().map(|used| used.1 as usize)).any(|len| {
        index += 1;
        guest_bytes(&guest.mem, index - 1, len)[HEADER_SIZE..] == ethernet
    });
    assert!(seen, "the guest did not see the host's frame");
    // With a header that asks for the impossible, the kernel refuses the frame and the guest lives on.
    let mut broken = with_header(&ethernet);
    broken[1] = 0x77;
    guest.queue_tx(&broken);
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.counter(|counters| &counters.tx_dropped), 1);
}
