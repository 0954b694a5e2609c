//! The network that the VMM itself understands: the framing of a user-mode network's socket and the service's TCP.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use ::devices::rate::{RateLimiter, RateLimits};
use ::devices::virtio::net::NetIdentity;
use ::devices::virtio::net::detour::{Respond, Service};
use ::devices::virtio::net::stream::Stream;
use ::devices::virtio::testing::{BUFFERS, Buffer, FakeDriver, guest_ram};
use vmm_sys_util::epoll::EventSet;

use crate::bytes::Bytes;

const IDENTITY: NetIdentity = NetIdentity { mac: [2, 0, 0, 0, 0, 1], mtu: None };
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Queues of the device.
const RX: u16 = 0;
const TX: u16 = 1;
/// Where a frame of the guest is, behind its header of 12 bytes.
const FRAME: u64 = BUFFERS + 0x10_0000;
const HEADER: u32 = 12;

fn limiter() -> RateLimiter {
    RateLimiter::new(&RateLimits::default()).unwrap()
}

/// A device with the service in it, and the network behind it.
fn on_stream() -> (FakeDriver, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let service = Service::new(ADDRESS, Arc::new(Mutex::new(Echo)));
    let device = service.on_stream(Stream::from_fd(ours.into()).unwrap(), IDENTITY, limiter());
    (start(device), peer)
}

/// A user-mode network that says anything, in any pieces.
pub fn stream(bytes: &[u8]) {
    let (mut driver, mut peer) = on_stream();
    let mut input = Bytes::new(bytes);
    while !input.is_empty() {
        let len = usize::from(input.u8());
        let _ = peer.write(input.take(len));
        take_frames(&mut driver);
    }
}

/// Frames of the guest for the service in the VMM.
pub fn detour(bytes: &[u8]) {
    let (mut driver, mut peer) = on_stream();
    let mut input = Bytes::new(bytes);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (len, is_raw) = (usize::from(input.u16()) % 2048, input.u8() & 1 != 0);
        let mut frame = input.take(len).to_vec();
        if !is_raw {
            address_to_service(&mut frame);
        }
        driver.fill(FRAME, &[0; HEADER as usize]);
        driver.fill(FRAME + u64::from(HEADER), &frame);
        let len = u32::try_from(frame.len()).unwrap();
        driver.submit(TX, &[Buffer::readable(FRAME, HEADER + len)]);
        while driver.take_used(TX).is_some() {}
        take_frames(&mut driver);
        let _ = peer.read(&mut [0; 4096]);
    }
}

/// Answers whatever is a line.
struct Echo;

impl Respond for Echo {
    fn respond(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        request.contains(&b'\n').then(|| request.to_vec())
    }
}

fn start(device: Box<dyn ::devices::virtio::device::VirtioDevice>) -> FakeDriver {
    let mut driver = FakeDriver::boxed(device, guest_ram(8 << 20));
    driver.initialize(u64::MAX);
    for index in 0..32 {
        driver.queues[usize::from(RX)].add(&[Buffer::writable(BUFFERS + index * 4096, 4096)]);
    }
    driver.transport.process_queue(RX);
    driver
}

/// What the event loop and the guest do when frames come: the buffers go back into the ring.
fn take_frames(driver: &mut FakeDriver) {
    driver.transport.process_host_event(0, EventSet::IN | EventSet::OUT);
    while let Some((head, _)) = driver.take_used(RX) {
        driver.queues[usize::from(RX)].publish(head);
    }
    driver.transport.process_queue(RX);
}

/// IPv4, TCP, to the service's port, with the checksums as they should be: what is behind them is reached then.
fn address_to_service(frame: &mut [u8]) {
    let Some(ethernet) = frame.get_mut(..14) else { return };
    ethernet[12..].copy_from_slice(&[8, 0]);
    let total = u16::try_from(frame.len() - 14).unwrap();
    let Some(packet) = frame.get_mut(14..).filter(|packet| packet.len() >= 40) else { return };
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[6..8].fill(0);
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&[10, 0, 2, 15]);
    packet[16..20].copy_from_slice(&ADDRESS.octets());
    packet[22..24].copy_from_slice(&80_u16.to_be_bytes());
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum);
    packet[36..38].fill(0);
    let pseudo = [&packet[12..20], &[0, 6], &(total - 20).to_be_bytes()].concat();
    let sum = checksum(&[&pseudo, &packet[20..]]);
    packet[36..38].copy_from_slice(&sum);
}

/// RFC 1071 over parts of even length, the last of any.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
