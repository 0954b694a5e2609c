//! A guest's driver in miniature; a datagram socket stands in for the TAP, except in [`real_tap`].

mod hostile;
mod life;
mod limits;
mod real_tap;
mod rx;
mod stream;
mod tx;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::{Bytes, GuestAddress};

use super::header::{HEADER_SIZE, MAX_FRAME};
use super::*;
use crate::rate::RateLimits;
use crate::virtio::fake_queue::{Buffer, CountingInterrupt, FakeQueue, Random, guest_ram};

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
        Self::limited(tap, RateLimits::default())
    }

    fn limited(tap: T, limits: RateLimits) -> Self {
        let mem = guest_ram(0x40_0000);
        Self {
            rx: FakeQueue::new(&mem, 0x1_0000, 256),
            tx: FakeQueue::new(&mem, 0x2_0000, 256),
            interrupt: CountingInterrupt::new(),
            device: Net::new(tap, IDENTITY, RateLimiter::new(&limits).unwrap()),
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
        let events = self.device.host_events();
        events.iter().find(|event| event.token == TAP).map_or(EventSet::empty(), |event| event.events)
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
    wired_with(RateLimits::default())
}

fn wired_with(limits: RateLimits) -> (Guest<FakeTap>, UnixDatagram, Arc<AtomicU32>) {
    let (socket, wire) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let offloads = Arc::new(AtomicU32::new(0));
    (Guest::limited(FakeTap { socket, offloads: offloads.clone() }, limits), wire, offloads)
}

/// As [`wired`], with a driver that takes all features.
fn ready() -> (Guest<FakeTap>, UnixDatagram) {
    limited(RateLimits::default())
}

fn limited(limits: RateLimits) -> (Guest<FakeTap>, UnixDatagram) {
    let (mut guest, wire, _) = wired_with(limits);
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
