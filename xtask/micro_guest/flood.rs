//! A guest that wants to keep its host busy: with console output, exits, notifications, or packets for nobody.

use crate::boot::Options;
use crate::device::{self, Device};
use crate::queue::Queue;
use crate::{console, fail, memory};

/// The serial port's line status.
const LINE_STATUS: u16 = 0x3fd;
/// Bytes of one string of output.
const STRING: u64 = 4096;
/// Bytes of a vsock packet without data, and where the next one is.
const PACKET: u32 = 44;
const SPACING: u64 = 64;

/// Never returns.
pub fn run(options: &Options) {
    match options.word("micro.kind=") {
        b"console" => write(),
        b"exits" => exit(),
        b"notifications" => notify(options),
        b"packets" => send(options),
        _ => fail("no such flood"),
    }
}

fn write() -> ! {
    for at in 0..STRING {
        memory::write(memory::DATA + at, if at % 64 == 63 { b'\n' } else { b'x' });
    }
    loop {
        // SAFETY: so many bytes are there; IOPL is 3.
        unsafe {
            core::arch::asm!(
                "rep outsb",
                in("dx") 0x3f8_u16,
                inout("rsi") memory::DATA => _,
                inout("rcx") STRING => _,
                options(nostack)
            );
        }
    }
}

fn exit() -> ! {
    console::put(b"ready\n");
    loop {
        // SAFETY: reading the register changes nothing of this program's; IOPL is 3.
        unsafe { core::arch::asm!("in al, dx", in("dx") LINE_STATUS, out("al") _, options(nomem, nostack)) };
    }
}

fn notify(options: &Options) -> ! {
    let (device, _queue) = start(options, device::BLOCK, 0);
    console::put(b"ready\n");
    loop {
        device.notify(0);
    }
}

/// Packets of connections that there are not: each is worth an answer, for which there is no room.
fn send(options: &Options) -> ! {
    let (device, mut queue) = start(options, device::VSOCK, 1);
    for slot in 0..queue.size() {
        let at = memory::HEADERS + u64::from(slot) * SPACING;
        // From CID 42 to the host, port 1 and another one each: type 1 (stream), operation 5 (data).
        memory::write(at, 42_u64);
        memory::write(at + 8, 2_u64);
        memory::write(at + 16, 1_u32);
        memory::write(at + 20, 5000 + u32::from(slot));
        memory::write(at + 24, 0_u32);
        memory::write(at + 28, 1_u16);
        memory::write(at + 30, 5_u16);
        queue.describe(slot, at, PACKET, 0, 0);
        queue.add(slot);
    }
    queue.publish();
    device.notify(1);
    console::put(b"ready\n");
    loop {
        while queue.used() > 0 {
            let (head, _) = queue.take();
            queue.add(head);
        }
        queue.publish();
        device.notify(1);
    }
}

/// A device with all its queues, and number `index` of them.
fn start(options: &Options, id: u32, index: u32) -> (Device, Queue) {
    let device = Device::start(options, id, 0);
    let queue = (0..=index).map(|number| device.queue(number, 128)).last();
    device.go();
    (device, queue.unwrap_or_else(|| fail("no queue")))
}
