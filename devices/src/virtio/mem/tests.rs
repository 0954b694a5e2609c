//! A driver in miniature that plugs and unplugs memory.

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes as _, GuestAddress, GuestRegionMmap};

use super::*;
use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, register, status};

const BLOCK: u64 = 2 << 20;
const REGION: MemRegion = MemRegion { address: 1 << 30, size: 16 << 20, block: BLOCK };
const ANSWER: u64 = BUFFERS + 64;

fn ram() -> GuestRam {
    let region = |start, size| {
        let mapping = MmapRegionBuilder::new_with_bitmap(size, None)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        GuestRegionMmap::new(mapping.build().unwrap(), GuestAddress(start)).unwrap()
    };
    GuestRam::from_regions(vec![region(0, 8 << 20), region(REGION.address, REGION.size as usize)]).unwrap()
}

fn driver() -> (FakeDriver, MemControl, GuestRam) {
    let ram = ram();
    let device = Mem::new(ram.clone(), REGION).unwrap();
    let control = device.control();
    let mut driver = FakeDriver::with_mem(device, ram.clone());
    assert_eq!(driver.initialize(1 << UNPLUGGED_INACCESSIBLE), 0xf);
    (driver, control, ram)
}

/// Sends a request for `count` blocks from block `first` on; gives type and state of the answer.
fn ask(driver: &mut FakeDriver, kind: u16, first: u64, count: u16) -> (u16, u16) {
    ask_at(driver, kind, REGION.address.wrapping_add(first.wrapping_mul(BLOCK)), count)
}

fn ask_at(driver: &mut FakeDriver, kind: u16, address: u64, count: u16) -> (u16, u16) {
    let mut request = [0; REQUEST_BYTES];
    request[..2].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&address.to_le_bytes());
    request[16..18].copy_from_slice(&count.to_le_bytes());
    driver.fill(BUFFERS, &request);
    driver.submit(0, &[Buffer::readable(BUFFERS, 24), Buffer::writable(ANSWER, 10)]);
    assert_eq!(driver.take_used(0).map(|(_, len)| len), Some(10));
    let answer = driver.peek(ANSWER, 10);
    (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
}

fn config(driver: &FakeDriver) -> [u64; 7] {
    std::array::from_fn(|word| {
        let half = |part: u64| u64::from(driver.read(register::CONFIG + word as u64 * 8 + part * 4));
        half(0) | half(1) << 32
    })
}

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const ERROR: (u16, u16) = (3, 0);

#[test]
fn blocks_are_plugged_up_to_what_the_host_asked_for() {
    let (mut driver, control, _) = driver();
    assert_eq!(config(&driver), [BLOCK, 0, REGION.address, REGION.size, 0, 0, 0]);
    assert_eq!(ask(&mut driver, PLUG, 0, 1), ERROR, "nothing is usable");
    control.request(3 * BLOCK).unwrap();
    driver.transport.process_host_event(0, EventSet::IN);
    assert!(driver.take_interrupt());
    assert_eq!(config(&driver)[4..], [3 * BLOCK, 0, 3 * BLOCK]);
    assert_eq!(ask(&mut driver, PLUG, 0, 2), ACK);
    assert_eq!(ask(&mut driver, PLUG, 1, 2), ERROR, "one is plugged");
    assert_eq!(ask(&mut driver, STATE, 0, 2), (0, 0));
    assert_eq!(ask(&mut driver, STATE, 2, 1), (0, 1));
    assert_eq!(ask(&mut driver, STATE, 1, 2), (0, 2));
    control.request(2 * BLOCK).unwrap();
    assert_eq!(ask(&mut driver, PLUG, 2, 1), NACK);
    assert_eq!(ask(&mut driver, PLUG, 3, 1), ERROR, "beyond what is usable");
    assert_eq!(control.sizes().plugged, 2 * BLOCK);
}

#[test]
fn unplugged_blocks_lose_their_pages() {
    let (mut driver, control, ram) = driver();
    control.request(4 * BLOCK).unwrap();
    assert_eq!(ask(&mut driver, PLUG, 0, 4), ACK);
    let byte = |block: u64| GuestAddress(REGION.address + block * BLOCK + 5);
    for block in 0..4 {
        ram.write_obj(7_u8, byte(block)).unwrap();
    }
    assert_eq!(ask(&mut driver, UNPLUG, 1, 2), ACK);
    let left: Vec<u8> = (0..4).map(|block| ram.read_obj(byte(block)).unwrap()).collect();
    assert_eq!(left, [7, 0, 0, 7]);
    assert_eq!(ask(&mut driver, UNPLUG, 0, 2), ERROR, "one is not plugged");
    assert_eq!(control.sizes().plugged, 2 * BLOCK);
    control.request(BLOCK).unwrap();
    assert_eq!(ask(&mut driver, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!((control.sizes().plugged, config(&driver)[4]), (0, BLOCK));
    assert_eq!(ram.read_obj::<u8>(byte(0)).unwrap(), 0);
    assert_eq!(driver.transport.host_failures(), 0);
}

#[test]
fn ranges_that_make_no_sense_are_errors_and_no_more() {
    let (mut driver, control, _) = driver();
    control.request(REGION.size).unwrap();
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, count) in [
            (REGION.address, 0),
            (REGION.address, 9),
            (REGION.address + 1, 1),
            (REGION.address - BLOCK, 1),
            (REGION.address + REGION.size, 1),
            (0, 1),
            (u64::MAX, u16::MAX),
            (0u64.wrapping_sub(BLOCK), 1),
        ] {
            assert_eq!(ask_at(&mut driver, kind, address, count), ERROR, "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(control.sizes().plugged, 0);
}

#[test]
fn requests_that_are_none_break_the_protocol() {
    for (bytes, answer) in [(23, 10), (24, 9), (24, 0)] {
        let (mut driver, ..) = driver();
        driver.submit(0, &[Buffer::readable(BUFFERS, bytes), Buffer::writable(ANSWER, answer)]);
        assert_ne!(driver.read(register::STATUS) & status::NEEDS_RESET, 0, "{bytes} {answer}");
    }
    let (mut driver, ..) = driver();
    driver.fill(BUFFERS, &[4; 24]);
    driver.submit(0, &[Buffer::readable(BUFFERS, 24), Buffer::writable(ANSWER, 10)]);
    assert_ne!(driver.read(register::STATUS) & status::NEEDS_RESET, 0);
}

#[test]
fn sizes_are_blocks_of_the_region_and_take_a_driver() {
    let control = Mem::new(ram(), REGION).unwrap().control();
    assert_eq!(control.request(BLOCK), Err(SizeError::NotActive));
    let (_driver, control, _) = driver();
    for size in [1, BLOCK + 1, REGION.size + BLOCK, u64::MAX] {
        assert!(matches!(control.request(size), Err(SizeError::Size { .. })), "{size}");
    }
    control.request(REGION.size).unwrap();
    control.request(0).unwrap();
}

#[test]
fn what_is_plugged_survives_a_snapshot() {
    let mut saved = Mem::new(ram(), REGION).unwrap();
    saved.control.lock().active = true;
    saved.control.request(5 * BLOCK).unwrap();
    for blocks in [0..2, 4..5] {
        saved.change(blocks, true);
    }
    let mut restored = Mem::new(ram(), REGION).unwrap();
    restored.restore(&saved.save()).unwrap();
    assert_eq!(restored.plugged, saved.plugged);
    let sizes = restored.control.sizes();
    assert_eq!((sizes.requested, sizes.plugged, sizes.usable), (5 * BLOCK, 3 * BLOCK, 5 * BLOCK));
    let state = |requested, plugged: &[(u32, u32)]| {
        let state = MemState { requested, usable: 0, plugged: plugged.to_vec() };
        restored_from(&postcard::to_allocvec(&state).unwrap())
    };
    for runs in [&[(0, 9)][..], &[(8, 1)], &[(u32::MAX, u32::MAX)], &[(1, 1), (0, 1)], &[(0, 2), (1, 1)]] {
        assert!(!state(0, runs), "{runs:?}");
    }
    assert!(!state(REGION.size + BLOCK, &[]) && !state(1, &[]) && !restored_from(&[]));
}

fn restored_from(state: &[u8]) -> bool {
    Mem::new(ram(), REGION).unwrap().restore(state).is_ok()
}
