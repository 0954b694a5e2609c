//! A database's writer: transactions with a rollback journal, one after the other, until the power is cut.
//!
//! ```text
//! journal pages + header ─► flush ─► database pages ─► flush ─► header cleared ─► flush ─► "ack N" on the console
//! ```
//!
//! `micro.from` is the last transaction on the disk; with `micro.flush=0` it does not flush, and with
//! `micro.feature=0` it has not even learnt that it could.

use crate::boot::Options;
use crate::device::{self, Device};
use crate::ledger::{
    self, DATABASE, HEADER, JOURNAL, MAGIC, PAGE_BYTES, PAGE_WORDS, PAGES, TOUCHED, journal_sum, touched,
};
use crate::queue::{NEXT, Queue, WRITE};
use crate::{console, fail, memory};

/// VIRTIO_BLK_F_FLUSH.
const FLUSH_FEATURE: u64 = 1 << 9;
const KIND_WRITE: u32 = 1;
const KIND_FLUSH: u32 = 4;
const SECTOR: u64 = 512;
/// Header and status of one request are this far from the next one's.
const SPACING: u64 = 64;
const STATUS: u64 = 16;
/// Descriptors of a request.
const DESCRIPTORS: u16 = 3;

struct Writer {
    queue: Queue,
    flushes: bool,
    /// Requests that were sent and not waited for.
    sent: u16,
}

/// Never returns but when the disk fails.
pub fn run(options: &Options) {
    let feature = if options.number("micro.feature=") != 0 { FLUSH_FEATURE } else { 0 };
    let device = Device::start(options, device::BLOCK, feature);
    let queue = device.queue(0, 64);
    device.go();
    let mut writer = Writer { queue, flushes: options.number("micro.flush=") != 0, sent: 0 };
    let mut number = options.number("micro.from=");
    let mut versions = ledger::versions(number);
    console::put(b"ready\n");
    loop {
        number += 1;
        writer.commit(number, &mut versions);
        console::put(b"ack");
        console::put_number("n", number);
        console::put(b"\n");
    }
}

impl Writer {
    fn commit(&mut self, number: u64, versions: &mut [u64; PAGES]) {
        let pages = touched(number);
        let old = |place: usize, index| ledger::word(pages[place], versions[pages[place]], index);
        for place in 0..TOUCHED {
            self.write(JOURNAL + place as u64 * PAGE_BYTES, PAGE_WORDS, |index| old(place, index));
        }
        let header = [MAGIC, number, journal_sum(number, old)];
        self.write(HEADER, SECTOR / 8, |index| header.get(index as usize).copied().unwrap_or(0));
        self.flush();
        for page in pages {
            self.write(DATABASE + page as u64 * PAGE_BYTES, PAGE_WORDS, |index| {
                ledger::word(page, number, index)
            });
            versions[page] = number;
        }
        self.flush();
        self.write(HEADER, SECTOR / 8, |_| 0);
        self.flush();
    }

    /// Sends words to the disk at byte `at`.
    fn write(&mut self, at: u64, words: u64, word: impl Fn(u64) -> u64) {
        let data = memory::DATA + u64::from(self.sent) * PAGE_BYTES;
        for index in 0..words {
            memory::write(data + index * 8, word(index));
        }
        self.send(KIND_WRITE, at / SECTOR, Some((data, words as u32 * 8)));
    }

    /// Waits for what was sent, and until it is on the medium.
    fn flush(&mut self) {
        self.wait();
        if self.flushes {
            self.send(KIND_FLUSH, 0, None);
            self.wait();
        }
    }

    fn send(&mut self, kind: u32, sector: u64, data: Option<(u64, u32)>) {
        let header = memory::HEADERS + u64::from(self.sent) * SPACING;
        memory::write(header, kind);
        memory::write(header + 4, 0u32);
        memory::write(header + 8, sector);
        memory::write(header + STATUS, 0xffu8);
        let first = self.sent * DESCRIPTORS;
        self.queue.describe(first, header, 16, NEXT, first + 1);
        let mut last = first + 1;
        if let Some((at, len)) = data {
            self.queue.describe(last, at, len, NEXT, last + 1);
            last += 1;
        }
        self.queue.describe(last, header + STATUS, 1, WRITE, 0);
        self.queue.add(first);
        self.sent += 1;
    }

    fn wait(&mut self) {
        self.queue.publish();
        while self.sent > 0 {
            if self.queue.used() == 0 {
                core::hint::spin_loop();
                continue;
            }
            let (head, _) = self.queue.take();
            let header = memory::HEADERS + u64::from(head / DESCRIPTORS) * SPACING;
            if memory::read::<u8>(header + STATUS) != 0 {
                fail("the disk failed");
            }
            self.sent -= 1;
        }
    }
}
