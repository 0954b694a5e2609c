//! Reads from a disk, `micro.depth` at a time, each of `micro.bytes`, at random or one after the other.

use crate::boot::Options;
use crate::device::Device;
use crate::queue::{NEXT, Queue, WRITE};
use crate::{console, cycles, fail, memory};

/// A longer read is cut into segments of so many bytes: what every device takes in one.
const SEGMENT: u64 = 256 << 10;
const SECTOR: u64 = 512;
const HEADER: u64 = 16;
/// Header and status of one request are this far from the next one's.
const SPACING: u64 = 64;

struct Reader {
    queue: Queue,
    bytes: u64,
    /// Reads of this length that the disk has room for.
    places: u64,
    random: bool,
    state: u64,
    descriptors: u16,
}

/// Reads `micro.warm` and then `micro.operations` times and reports the second part.
pub fn run(options: &Options, id: u32) {
    let device = Device::start(options, id, 0);
    let queue = device.queue(0, 256);
    device.go();
    let sectors = u64::from(device.config(0)) | (u64::from(device.config(4)) << 32);
    let bytes = options.number("micro.bytes=");
    let random = options.number("micro.random=") != 0;
    let depth = options.number("micro.depth=");
    let descriptors = (bytes.div_ceil(SEGMENT) + 2) as u16;
    if depth * u64::from(descriptors) > u64::from(queue.size()) || sectors * SECTOR < bytes {
        fail("the queue or the disk is too small");
    }
    let places = sectors * SECTOR / bytes;
    let mut reader = Reader { queue, bytes, places, random, state: 0x9e37_79b9_7f4a_7c15, descriptors };
    for slot in 0..depth {
        reader.describe(slot);
    }
    for rounds in ["micro.warm=", "micro.operations="] {
        let operations = options.number(rounds);
        reader.queue.notifications = 0;
        let start = cycles();
        reader.read(depth, operations);
        let end = cycles();
        if rounds != "micro.warm=" {
            console::report(operations, end - start, reader.queue.notifications);
        }
    }
}

impl Reader {
    /// Reads `operations` times with `depth` requests in flight.
    fn read(&mut self, depth: u64, operations: u64) {
        let mut sent = 0;
        while sent < depth.min(operations) {
            self.send(sent);
            sent += 1;
        }
        self.queue.publish();
        let mut done = 0;
        while done < operations {
            let mut used = self.queue.used();
            if used == 0 {
                core::hint::spin_loop();
                continue;
            }
            let before = sent;
            while used > 0 {
                let (head, written) = self.queue.take();
                let slot = u64::from(head / self.descriptors);
                if written as u64 != self.bytes + 1 || memory::read::<u8>(status(slot)) != 0 {
                    fail("a read failed");
                }
                done += 1;
                used -= 1;
                if sent < operations {
                    self.send(slot);
                    sent += 1;
                }
            }
            if sent > before {
                self.queue.publish();
            }
        }
    }

    fn send(&mut self, slot: u64) {
        let place = if self.random {
            // xorshift64
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state % self.places
        } else {
            self.state = (self.state + 1) % self.places;
            self.state
        };
        memory::write(header(slot) + 8, place * (self.bytes / SECTOR));
        self.queue.add(slot as u16 * self.descriptors);
    }

    /// Writes the descriptors of request `slot`, which stay as they are.
    fn describe(&mut self, slot: u64) {
        memory::clear(header(slot), HEADER);
        let first = slot as u16 * self.descriptors;
        self.queue.describe(first, header(slot), HEADER as u32, NEXT, first + 1);
        let data = memory::DATA + slot * self.bytes;
        let mut at = 0;
        let mut index = first + 1;
        while at < self.bytes {
            let len = SEGMENT.min(self.bytes - at);
            self.queue.describe(index, data + at, len as u32, NEXT | WRITE, index + 1);
            at += len;
            index += 1;
        }
        self.queue.describe(index, status(slot), 1, WRITE, 0);
    }
}

fn header(slot: u64) -> u64 {
    memory::HEADERS + slot * SPACING
}

fn status(slot: u64) -> u64 {
    header(slot) + HEADER
}
