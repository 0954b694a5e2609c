//! The driver that keeps to no rule.

use ::devices::bus::BusDevice as _;
use ::devices::virtio::device::VirtioDevice;
use ::devices::virtio::testing::{BUFFERS, Buffer, FakeDriver};
use vmm_sys_util::epoll::EventSet;

use crate::bytes::Bytes;

/// Steps of one input. Keeps a run short; longer inputs say nothing more.
const MAX_STEPS: usize = 256;
/// Guest memory in bytes.
const MEM_SIZE: u64 = 8 << 20;
/// Where the rings are that `FakeDriver` sets up.
const RINGS_END: u64 = 0x10_0000;

/// Lets the program in `input` drive `device`; `outside` is called where the host's side is to do something.
///
/// At the end the device must let itself be saved, and a driver that keeps the rules must get it going again.
pub fn drive(
    device: impl VirtioDevice + 'static,
    input: &mut Bytes<'_>,
    outside: impl FnMut(&mut Bytes<'_>),
) {
    drive_on(device, input, outside, true);
}

/// The same; without `pauses` the machine never stands still, for a device that then waits for its server.
pub fn drive_on(
    mut device: impl VirtioDevice + 'static,
    input: &mut Bytes<'_>,
    mut outside: impl FnMut(&mut Bytes<'_>),
    pauses: bool,
) {
    if input.u8() & 1 != 0 {
        let len = usize::from(input.u8());
        // From a snapshot of anybody.
        let _ = device.restore(input.take(len));
    }
    let mut driver = FakeDriver::new(device);
    if input.u8() & 1 == 0 {
        driver.initialize(u64::MAX);
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut driver, input, &mut outside, pauses);
    }
    if pauses {
        let _ = driver.transport.save();
    }
    let status = driver.initialize(u64::MAX);
    assert_eq!(status & 0xf, 0xf, "the device came back from a reset with status {status:#x}");
}

fn step(
    driver: &mut FakeDriver,
    input: &mut Bytes<'_>,
    outside: &mut impl FnMut(&mut Bytes<'_>),
    pauses: bool,
) {
    match input.u8() % 16 {
        0 => driver.write(u64::from(input.u16()) % 0x1000, input.u32()),
        1 => odd_access(driver, input),
        2 | 3 => {
            let (index, buffer) = (input.u16(), buffer(input));
            let (flags, next) = (input.u16() & 7, input.u16());
            with_queue(driver, input, |queue| queue.write_descriptor(index & 0x3ff, buffer, flags, next));
        }
        4 | 5 => {
            let head = input.u16();
            with_queue(driver, input, |queue| queue.publish(head));
        }
        // A chain as it should be, with any content.
        6 | 7 => {
            let count = usize::from(input.u8() % 6) + 1;
            let buffers: Vec<Buffer> = (0..count).map(|_| buffer(input)).collect();
            with_queue(driver, input, |queue| {
                queue.add(&buffers);
            });
        }
        8 | 9 => {
            let len = usize::from(input.u8());
            let addr = address(input) % (MEM_SIZE - 256);
            let bytes = input.take(len);
            driver.fill(addr, bytes);
        }
        10 => notify(driver, input.u8()),
        11 => {
            driver.initialize(input.u64());
        }
        12 => driver.transport.process_host_event(u32::from(input.u8() % 4), EventSet::IN | EventSet::OUT),
        13 => {
            if driver.transport.start_polling() {
                driver.transport.poll();
                driver.transport.stop_polling();
            }
        }
        14 if pauses => driver.transport.quiesce(),
        _ => outside(input),
    }
    run_once(driver);
    driver.observed.take();
}

/// What the event loop does in one turn; a driver that keeps it busy is met again in the next step.
fn run_once(driver: &FakeDriver) {
    for (index, notifier) in (0..).zip(driver.transport.queue_notifiers()) {
        if notifier.read().is_ok() {
            driver.transport.process_queue(index);
        }
    }
    for event in driver.transport.take_host_events().unwrap_or_default() {
        driver.transport.process_host_event(event.token, EventSet::IN);
    }
}

/// Registers at any place and of any width.
fn odd_access(driver: &FakeDriver, input: &mut Bytes<'_>) {
    let (offset, width) = (u64::from(input.u16()) % 0x1000, usize::from(input.u8() % 9));
    if input.u8() & 1 == 0 {
        driver.transport.write(offset, input.take(width));
    } else {
        let mut data = vec![0xaa; width];
        driver.transport.read(offset, &mut data);
    }
}

fn notify(driver: &FakeDriver, index: u8) {
    let queues = driver.transport.queue_notifiers().len().max(1);
    driver.transport.process_queue(u16::from(index) % u16::try_from(queues).unwrap_or(1));
}

fn with_queue(
    driver: &mut FakeDriver,
    input: &mut Bytes<'_>,
    work: impl FnOnce(&mut ::devices::virtio::testing::FakeQueue),
) {
    let which = usize::from(input.u8());
    let count = driver.queues.len().max(1);
    if let Some(queue) = driver.queues.get_mut(which % count) {
        work(queue);
    }
}

/// Mostly an address in memory, where two inputs are likely to meet.
fn address(input: &mut Bytes<'_>) -> u64 {
    match input.u8() % 4 {
        0 => input.u64(),
        1 => u64::from(input.u32()) % RINGS_END,
        _ => BUFFERS + u64::from(input.u8()) * 64,
    }
}

fn buffer(input: &mut Bytes<'_>) -> Buffer {
    let addr = address(input);
    let len = match input.u8() % 4 {
        0 => input.u32(),
        1 => u32::from(input.u16()),
        2 => 16,
        _ => u32::from(input.u8()),
    };
    Buffer { addr, len, writable: input.u8() & 1 != 0 }
}
