//! A guest that has lost its mind: it sends nonsense to every device, for ever, and counts its rounds.
//!
//! Each round picks a device and breaks it in one of several ways: registers with any value in any width, queues of
//! any size anywhere, descriptors that point anywhere, loop or lie, and requests that look right up to one field.
//! `micro.seed` makes a run the same again. What would only end this guest is left out: its own memory (all below
//! 32 MiB) as a buffer, the commands that power off or reset, interrupts that a processor cannot refuse.

use crate::boot::Options;
use crate::{console, memory};

const SLOTS: u64 = 19;
const IOAPIC: u64 = 0xfec0_0000;
const MAGIC: u32 = 0x7472_6976;
/// Rounds between two lines on the console.
const REPORT_EVERY: u64 = 64;
/// Buffers are from here on, in so many bytes.
const BUFFERS: u64 = 64 << 20;
const BUFFERS_LEN: u64 = 8 << 20;
/// Rings of a queue are this far from the next one's.
const RING_SPACING: u64 = 0x1_0000;

const DEVICE_ID: u64 = 0x08;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;

/// Values that have broken many a device.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_ffff_ffff_f000];

struct Chaos {
    state: u64,
    base: u64,
    stride: u64,
}

/// Never returns.
pub fn run(options: &Options) {
    let state = options.number("micro.seed=") | 1;
    let mut chaos =
        Chaos { state, base: options.number("micro.mmio="), stride: options.number("micro.stride=") };
    console::put(b"ready\n");
    let mut rounds = 0;
    loop {
        chaos.round();
        rounds += 1;
        if rounds % REPORT_EVERY == 0 {
            // The line control and modem control registers may hold anything by now.
            out(0x3fb, 3);
            out(0x3fc, 3);
            console::put(b"round");
            console::put_number("n", rounds);
            console::put(b"\n");
        }
    }
}

impl Chaos {
    fn round(&mut self) {
        let device = self.base + self.below(SLOTS) * self.stride;
        match self.below(16) {
            0 => self.any_registers(device),
            1 => self.ioapic(),
            2 => self.ports(),
            3 => self.configuration_space(device),
            _ => self.session(device),
        }
    }

    /// From a reset through some setup to nonsense in the rings.
    fn session(&mut self, device: u64) {
        if memory::read::<u32>(device) != MAGIC {
            return;
        }
        let id: u32 = memory::read(device + DEVICE_ID);
        self.set_up(device);
        for _ in 0..self.below(24) {
            let queue = self.below(6);
            let rings = memory::RINGS + queue * RING_SPACING;
            match self.below(8) {
                0 => memory::write(rings + AVAIL + 2, self.any() as u16),
                1 => memory::write(rings + AVAIL, self.any() as u16),
                2 => memory::write(rings + USED + 2, self.any() as u16),
                3 => self.scribble(rings),
                4 => memory::write(device + 0x64, self.any() as u32),
                _ => self.request(id, rings),
            }
            memory::write(device + QUEUE_NOTIFY, queue as u32);
        }
    }

    /// As a driver does it, with a lie now and then.
    fn set_up(&mut self, device: u64) {
        let word = |register: u64, value: u32| memory::write(device + register, value);
        word(STATUS, 0);
        word(STATUS, 1);
        word(STATUS, 3);
        for selector in [0, 1] {
            word(0x14, selector);
            let offered: u32 = memory::read(device + 0x10);
            word(0x24, selector);
            // VERSION_1 is in the second word, so it is the others that are left out.
            let refused = if selector == 0 && self.below(2) == 0 { self.any() as u32 } else { 0 };
            word(0x20, offered & !refused);
        }
        word(STATUS, 11);
        for queue in 0..5 {
            let rings = memory::RINGS + queue * RING_SPACING;
            memory::write(rings + AVAIL, 0u32);
            memory::write(rings + USED, 0u32);
            word(QUEUE_SEL, queue as u32);
            let max: u32 = memory::read(device + 0x34);
            let size = if self.below(16) == 0 { self.any() as u32 } else { max };
            word(QUEUE_NUM, size);
            for (register, offset) in QUEUE_ADDRESSES.into_iter().zip([0, AVAIL, USED]) {
                let at = if self.below(64) == 0 { self.address() } else { rings + offset };
                word(register, at as u32);
                word(register + 4, (at >> 32) as u32);
            }
            word(QUEUE_READY, u32::from(self.below(16) != 0));
        }
        word(STATUS, 15);
    }

    /// Descriptors and heads of any kind.
    fn scribble(&mut self, rings: u64) {
        for _ in 0..self.below(8) {
            let (at, index) = (self.address(), self.below(300));
            let len = if self.below(3) == 0 { self.any() as u32 } else { self.below(8192) as u32 };
            let flags = self.below(16) as u16;
            let next = if self.below(4) == 0 { self.any() } else { self.below(16) };
            descriptor(rings, index, at, len, flags, next as u16);
        }
        let head = self.below(300) as u16;
        publish(rings, head);
    }

    /// A request as this kind of device knows it, with one field that may be anything.
    fn request(&mut self, id: u32, rings: u64) {
        let at = BUFFERS + self.below(BUFFERS_LEN / 4096) * 4096;
        for index in 0..8 {
            memory::write(at + index * 8, self.any());
        }
        match id {
            // Block: kind, sector.
            2 => {
                memory::write(at, self.below(16) as u32);
                memory::write(at + 8, self.below(300));
            }
            // Entropy and persistent memory.
            4 | 27 => memory::write(at, 0u32),
            // Balloon: page numbers that are not this program's.
            5 => {
                for index in 0..16 {
                    memory::write(at + index * 4, (self.address() >> 12) as u32);
                }
            }
            // Vsock: CIDs, ports, length, type and operation, credit.
            19 => {
                memory::write(at, if self.below(16) == 0 { self.any() } else { 42 });
                memory::write(at + 8, if self.below(16) == 0 { self.any() } else { 2 });
                memory::write(at + 16, self.below(8) as u32);
                memory::write(at + 20, 1024 + self.below(3) as u32);
                memory::write(at + 24, self.below(64) as u32);
                memory::write(at + 28, if self.below(16) == 0 { self.any() as u16 } else { 1 });
                memory::write(at + 30, self.below(9) as u16);
                memory::write(at + 32, self.below(4) as u32);
                memory::write(at + 36, self.any() as u32);
            }
            // FUSE: length, operation, number.
            26 => {
                memory::write(at, 40 + self.below(32) as u32);
                memory::write(at + 4, self.below(60) as u32);
                memory::write(at + 8, self.below(4));
            }
            _ => {}
        }
        if self.below(8) == 0 {
            let field = self.below(10);
            memory::write(at + field * 4, self.any() as u32);
        }
        let header = match id {
            2 => 16,
            19 => 44 + self.below(64) as u32,
            26 => 40 + self.below(32) as u32,
            4 => 0,
            5 => 4 * self.below(17) as u32,
            _ => self.below(2048) as u32,
        };
        // Readable, writable of some size, and the status byte of those that have one.
        let data = at + 2048;
        let writable = if self.below(2) == 0 { 2 } else { 0 };
        let len = if self.below(16) == 0 { self.any() as u32 } else { 512 * self.below(9) as u32 };
        let first = self.below(60) * 4;
        let next = |step: u64| (first + step) as u16;
        match id {
            2 => {
                descriptor(rings, first, at, header, 1, next(1));
                descriptor(rings, first + 1, data, len, 1 | writable, next(2));
                descriptor(rings, first + 2, data + 1024, 1, 2, 0);
            }
            4 => descriptor(rings, first, data, len, 2, 0),
            26 | 27 => {
                descriptor(rings, first, at, header, 1, next(1));
                descriptor(rings, first + 1, data, len, 2, 0);
            }
            _ => descriptor(rings, first, at, header.max(len), writable, 0),
        }
        publish(rings, first as u16);
    }

    fn any_registers(&mut self, device: u64) {
        for _ in 0..self.below(64) {
            let offset = if self.below(4) == 0 { self.below(0x1000 - 8) } else { self.below(0x44) * 4 };
            self.access(device + offset);
        }
    }

    fn configuration_space(&mut self, device: u64) {
        for _ in 0..self.below(64) {
            let offset = 0x100 + self.below(0x60);
            self.access(device + offset);
        }
    }

    fn ioapic(&mut self) {
        for _ in 0..self.below(32) {
            memory::write(IOAPIC, self.below(0x48) as u32);
            // Delivery modes 0 and 1 only: the others reach a processor whose local APIC is off.
            memory::write(IOAPIC + 0x10, self.any() as u32 & !0x600);
            let _: u32 = memory::read(IOAPIC + 0x10);
            let offset = self.below(0x100 - 8);
            if !(0x10..0x18).contains(&offset) && offset >= 4 {
                self.access(IOAPIC + offset);
            }
        }
    }

    fn ports(&mut self) {
        for _ in 0..self.below(32) {
            let value = self.any() as u8;
            match self.below(6) {
                // All of the serial port but its data: that is the console's.
                0 => out(0x3f9 + self.below(7) as u16, value),
                1 if value != 0xfe => out(0x64, value),
                2 if value != 0xfe => out(0x60, value),
                3 if value > 2 => out(0x600, value),
                4 => out(0x610 + self.below(12) as u16, value),
                _ => {
                    let port = self.any() as u16;
                    // SAFETY: reading a port changes nothing of this program's; IOPL is 3.
                    unsafe { core::arch::asm!("in al, dx", in("dx") port, out("al") _, options(nomem, nostack)) };
                }
            }
        }
    }

    /// Reads or writes in any width.
    fn access(&mut self, at: u64) {
        let value = self.any();
        match self.below(8) {
            0 => memory::write(at, value as u8),
            1 => memory::write(at, value as u16),
            2 | 3 => memory::write(at, value as u32),
            4 => memory::write(at, value),
            5 => drop(memory::read::<u8>(at)),
            6 => drop(memory::read::<u32>(at)),
            _ => drop(memory::read::<u64>(at)),
        }
    }

    /// An address that is not this program's: a buffer, a ring, a device, persistent memory, or nowhere.
    fn address(&mut self) -> u64 {
        match self.below(16) {
            0 => memory::RINGS + self.below(6 * RING_SPACING),
            1 => self.base + self.below(SLOTS * self.stride),
            2 => (1 << 32) + self.below(4 << 20),
            3 => (256 << 20) - self.below(64),
            4 => u64::MAX - self.below(1 << 20),
            5 => (self.any() | (1 << 33)) & !0xfff,
            _ => BUFFERS + self.below(BUFFERS_LEN),
        }
    }

    fn any(&mut self) -> u64 {
        match self.below(3) {
            0 => EDGES[self.below(EDGES.len() as u64) as usize],
            1 => self.below(256),
            _ => {
                self.below(1);
                self.state
            }
        }
    }

    /// xorshift64
    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % limit
    }
}

fn descriptor(rings: u64, index: u64, at: u64, len: u32, flags: u16, next: u16) {
    let place = rings + 16 * index;
    memory::write(place, at);
    memory::write(place + 8, len);
    memory::write(place + 12, flags);
    memory::write(place + 14, next);
}

/// Makes the chain at `head` available in a ring of 256, or of what the device takes for it.
fn publish(rings: u64, head: u16) {
    let index: u16 = memory::read(rings + AVAIL + 2);
    memory::write(rings + AVAIL + 4 + 2 * u64::from(index % 256), head);
    memory::write(rings + AVAIL + 2, index.wrapping_add(1));
}

fn out(port: u16, value: u8) {
    // SAFETY: the device behind the port is what this program is for; IOPL is 3.
    unsafe { core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}
