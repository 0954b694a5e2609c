//! Frames of `micro.bytes`, Ethernet header included, sent as fast as the device takes them.
//!
//! For `echo` the host sends each one back out of the same interface, and the frame counts when it came back.

use crate::boot::Options;
use crate::device::Device;
use crate::queue::{Queue, WRITE};
use crate::{console, cycles, fail, memory};

/// VIRTIO_NET_F_MRG_RXBUF.
const MERGEABLE: u64 = 1 << 15;
/// Offload header with `num_buffers`.
const HEADER: u64 = 12;
/// A type that no protocol of the host answers to (IEEE local experimental).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

const RX: u64 = 128 << 20;
/// Room for one frame of 64 KiB.
const RX_SPACING: u64 = 128 << 10;

/// Sends `micro.operations` frames, at most `micro.depth` at a time.
pub fn send(options: &Options, id: u32) {
    let (_, mut tx) = start(options, id);
    let depth = options.number("micro.depth=").min(u64::from(tx.size()));
    for rounds in ["micro.warm=", "micro.operations="] {
        let operations = options.number(rounds);
        tx.notifications = 0;
        let begin = cycles();
        let mut frames = Frames::new(depth);
        let (mut sent, mut done) = (0, 0);
        while done < operations {
            sent += frames.send(&mut tx, operations - sent);
            done += frames.take_back(&mut tx);
        }
        report(rounds, operations, cycles() - begin, tx.notifications);
    }
}

/// Sends `micro.operations` frames, at most `micro.depth` under way, and waits until each came back.
pub fn echo(options: &Options, id: u32) {
    let (mut rx, mut tx) = start(options, id);
    let bytes = options.number("micro.bytes=");
    let depth = options.number("micro.depth=").min(u64::from(tx.size()));
    for slot in 0..rx.size() {
        rx.describe(slot, RX + RX_SPACING * u64::from(slot), RX_SPACING as u32, WRITE, 0);
        rx.add(slot);
    }
    rx.publish();
    for rounds in ["micro.warm=", "micro.operations="] {
        let operations = options.number(rounds);
        tx.notifications = 0;
        rx.notifications = 0;
        let begin = cycles();
        let mut frames = Frames::new(depth);
        let (mut sent, mut done, mut back) = (0, 0, 0);
        while back < operations || done < operations {
            sent += frames.send(&mut tx, (operations - sent).min(depth - (sent - back)));
            done += frames.take_back(&mut tx);
            let came = rx.used();
            for _ in 0..came {
                let (head, written) = rx.take();
                let frame = RX + RX_SPACING * u64::from(head) + HEADER;
                if memory::read::<[u8; 2]>(frame + 12) == ETHERTYPE {
                    if u64::from(written) != HEADER + bytes {
                        fail("a frame came back with another length");
                    }
                    back += 1;
                }
                rx.add(head);
            }
            if came > 0 {
                rx.publish();
            }
        }
        report(rounds, operations, cycles() - begin, tx.notifications + rx.notifications);
    }
}

/// The frames that the device does not have.
struct Frames {
    heads: [u16; 256],
    free: usize,
}

impl Frames {
    fn new(depth: u64) -> Self {
        Self { heads: core::array::from_fn(|index| index as u16), free: depth as usize }
    }

    /// Sends what is free, at most `wanted`; says how many.
    fn send(&mut self, tx: &mut Queue, wanted: u64) -> u64 {
        let count = wanted.min(self.free as u64);
        for _ in 0..count {
            self.free -= 1;
            tx.add(self.heads[self.free]);
        }
        if count > 0 {
            tx.publish();
        }
        count
    }

    /// Takes back what the device has sent; says how many.
    fn take_back(&mut self, tx: &mut Queue) -> u64 {
        let count = tx.used();
        for _ in 0..count {
            self.heads[self.free] = tx.take().0;
            self.free += 1;
        }
        u64::from(count)
    }
}

fn report(rounds: &str, operations: u64, cycles: u64, notifications: u64) {
    if rounds != "micro.warm=" {
        console::report(operations, cycles, notifications);
    }
}

/// A device with both queues; each descriptor of the sending one is a frame behind its header.
fn start(options: &Options, id: u32) -> (Queue, Queue) {
    let device = Device::start(options, id, MERGEABLE);
    let rx = device.queue(0, 256);
    let tx = device.queue(1, 256);
    device.go();
    let bytes = options.number("micro.bytes=");
    let depth = options.number("micro.depth=").min(u64::from(tx.size()));
    if bytes < 60 || memory::DATA + depth * spacing(bytes) > RX {
        fail("frames are too short, or too many for the memory");
    }
    for slot in 0..depth {
        let at = memory::DATA + slot * spacing(bytes);
        memory::clear(at, HEADER + 20);
        let frame = at + HEADER;
        memory::write(frame, [0xffu8; 6]);
        memory::write(frame + 6, [2u8, 0, 0, 0, 0, 9]);
        memory::write(frame + 12, ETHERTYPE);
        tx.describe(slot as u16, at, (HEADER + bytes) as u32, 0, 0);
    }
    (rx, tx)
}

/// Frames do not share cache lines.
fn spacing(bytes: u64) -> u64 {
    (HEADER + bytes).next_multiple_of(256)
}
