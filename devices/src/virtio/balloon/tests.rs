//! A driver in miniature that gives memory back.

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::*;
use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, guest_ram, register, status};

const MEM_SIZE: usize = 8 << 20;
const LIST: u64 = BUFFERS;
/// Pages that the tests give back.
const PAGES: u64 = 0x40_0000;
const PAGE: u64 = 4096;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORTING: u16 = THIRD;

fn driver_with(ram: GuestRam) -> (FakeDriver, BalloonControl) {
    let balloon = Balloon::new(ram.clone()).unwrap();
    let control = balloon.control();
    let mut driver = FakeDriver::with_mem(balloon, ram);
    assert_eq!(driver.initialize(1 << PAGE_REPORTING), 0xf);
    driver.fill(PAGES, &[7; 8 * PAGE as usize]);
    (driver, control)
}

fn driver() -> (FakeDriver, BalloonControl) {
    driver_with(guest_ram(MEM_SIZE))
}

/// Which of eight pages from `PAGES` on are as they were.
fn kept(driver: &FakeDriver) -> [bool; 8] {
    std::array::from_fn(|index| {
        let bytes = driver.peek(PAGES + PAGE * index as u64, PAGE as usize);
        let first = bytes[0];
        assert!((first == 7 || first == 0) && bytes.iter().all(|&byte| byte == first), "page {index}");
        first == 7
    })
}

fn send_list(driver: &mut FakeDriver, queue: u16, pfns: &[u64]) {
    let bytes: Vec<u8> = pfns.iter().flat_map(|&pfn| (pfn as u32).to_le_bytes()).collect();
    driver.fill(LIST, &bytes);
    driver.submit(queue, &[Buffer::readable(LIST, bytes.len() as u32)]);
}

fn is_broken(driver: &FakeDriver) -> bool {
    driver.read(register::STATUS) & status::NEEDS_RESET != 0
}

#[test]
fn inflated_pages_are_given_back_and_no_others() {
    let (mut driver, _) = driver();
    let first = PAGES / PAGE;
    send_list(&mut driver, INFLATE, &[first + 5, first + 1, first + 2, first + 1]);
    assert_eq!(driver.take_used(INFLATE).map(|(_, len)| len), Some(0));
    assert_eq!(kept(&driver), [true, false, false, true, true, false, true, true]);
    assert!(!is_broken(&driver));
    assert_eq!(driver.transport.host_failures(), 0);
}

#[test]
fn deflating_changes_nothing() {
    let (mut driver, _) = driver();
    send_list(&mut driver, DEFLATE, &[PAGES / PAGE, u64::MAX]);
    assert!(driver.take_used(DEFLATE).is_some());
    assert_eq!(kept(&driver), [true; 8]);
}

#[test]
fn reported_ranges_are_given_back_in_whole_pages() {
    let (mut driver, _) = driver();
    let ranges = [
        Buffer::writable(PAGES, 2 * PAGE as u32),
        Buffer::writable(PAGES + 3 * PAGE + 1, 2 * PAGE as u32),
        Buffer::writable(PAGES + 6 * PAGE + 1, PAGE as u32),
    ];
    driver.submit(REPORTING, &ranges);
    assert!(driver.take_used(REPORTING).is_some());
    assert_eq!(kept(&driver), [false, false, true, true, false, true, true, true]);
}

#[test]
fn memory_that_is_a_private_mapping_reads_as_its_file_again() {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; PAGE as usize], PAGES + PAGE).unwrap();
    file.set_len(MEM_SIZE as u64).unwrap();
    let mapping = MmapRegionBuilder::new_with_bitmap(MEM_SIZE, None)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::new(file, 0))
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    let (mut driver, _) = driver_with(GuestRam::from_regions(vec![region]).unwrap());
    driver.submit(REPORTING, &[Buffer::writable(PAGES, 3 * PAGE as u32)]);
    let first_bytes = [0, 1, 2, 3].map(|page| driver.peek(PAGES + page * PAGE, 1)[0]);
    assert_eq!(first_bytes, [0, 9, 0, 7]);
}

#[test]
fn memory_that_is_a_shared_mapping_is_removed_from_its_file() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("ram"))
        .unwrap();
    file.set_len(MEM_SIZE as u64).unwrap();
    let mapping = MmapRegionBuilder::new_with_bitmap(MEM_SIZE, None)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0))
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    let (mut driver, _) = driver_with(GuestRam::from_regions(vec![region]).unwrap());
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    let before = blocks();
    driver.submit(REPORTING, &[Buffer::writable(PAGES, 4 * PAGE as u32)]);
    assert_eq!(kept(&driver), [false, false, false, false, true, true, true, true]);
    // Looking at the pages brought none back that counts less: four were removed before that.
    assert!(blocks() <= before, "{before} blocks before");
    assert_eq!(driver.transport.host_failures(), 0);
}

#[test]
fn what_is_not_ram_breaks_the_protocol_and_nothing_is_touched() {
    let end = MEM_SIZE as u64;
    for pfn in [end / PAGE, 1 << 20, u64::from(u32::MAX)] {
        let (mut driver, _) = driver();
        send_list(&mut driver, INFLATE, &[PAGES / PAGE, pfn]);
        assert!(is_broken(&driver), "{pfn:#x}");
        assert_eq!(kept(&driver), [true; 8]);
    }
    for (addr, len) in [(end, 4096), (end - 4096, 8192), (u64::MAX - 8191, 8192), (1 << 40, u32::MAX)] {
        let (mut driver, _) = driver();
        driver.submit(REPORTING, &[Buffer::writable(PAGES, 4096), Buffer::writable(addr, len)]);
        assert!(is_broken(&driver), "{addr:#x} {len:#x}");
        assert_eq!(kept(&driver), [true; 8]);
    }
}

#[test]
fn memory_that_is_only_addressable_is_not_given_back() {
    let window = GuestAddress(1 << 32);
    let region = MmapRegionBuilder::new_with_bitmap(8 << 12, None)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .build()
        .unwrap();
    let ram = guest_ram(MEM_SIZE);
    let region = Arc::new(GuestRegionMmap::new(region, window).unwrap());
    let addressable = ram.insert_region(region).unwrap();
    for report in [false, true] {
        let mut driver = FakeDriver::with_mem(Balloon::new(ram.clone()).unwrap(), addressable.clone());
        driver.initialize(1 << PAGE_REPORTING);
        driver.fill(window.0, &[7; 16]);
        if report {
            driver.submit(REPORTING, &[Buffer::writable(window.0, 4096)]);
        } else {
            send_list(&mut driver, INFLATE, &[window.0 / PAGE]);
        }
        assert!(is_broken(&driver));
        assert_eq!(driver.peek(window.0, 16), [7; 16]);
    }
}

#[test]
fn chains_of_the_wrong_direction_break_the_protocol() {
    for (queue, buffer) in [(INFLATE, Buffer::writable(LIST, 4)), (REPORTING, Buffer::readable(PAGES, 4096))]
    {
        let (mut driver, _) = driver();
        driver.submit(queue, &[buffer]);
        assert!(is_broken(&driver), "{queue}");
    }
}

#[test]
fn one_list_gives_a_bounded_number_of_pages_back() {
    let (mut driver, _) = driver();
    let mut pfns = vec![0x600; MAX_PFNS];
    pfns.push(PAGES / PAGE);
    send_list(&mut driver, INFLATE, &pfns);
    assert!(driver.take_used(INFLATE).is_some());
    assert_eq!(kept(&driver), [true; 8]);
    // Half a number is none.
    driver.submit(INFLATE, &[Buffer::readable(LIST, 3)]);
    assert!(driver.take_used(INFLATE).is_some());
    assert!(!is_broken(&driver));
}

#[test]
fn a_new_target_is_told_to_the_driver() {
    let (driver, control) = driver();
    assert_eq!(control.set_target(9), Err(TargetError { mib: 9, max: 8 }));
    assert_eq!(control.set_target(u32::MAX), Err(TargetError { mib: u32::MAX, max: 8 }));
    control.set_target(3).unwrap();
    let events = driver.transport.take_host_events().unwrap();
    assert_eq!(events.len(), 1);
    driver.take_interrupt();
    driver.transport.process_host_event(events[0].token, EventSet::IN);
    assert!(driver.take_interrupt());
    assert_eq!(driver.read(register::INTERRUPT_STATUS) & 2, 2);
    assert_eq!(driver.read(register::CONFIG), 3 * 256);
    driver.write(register::CONFIG + 4, 2 * 256 + 255);
    assert_eq!((control.target_mib(), control.actual_mib()), (3, 2));
    driver.write(register::STATUS, 0);
    assert_eq!((control.target_mib(), control.actual_mib()), (3, 0));
}

#[test]
fn target_and_size_are_saved() {
    let (driver, control) = driver();
    control.set_target(2).unwrap();
    driver.write(register::CONFIG + 4, 256);
    let state = driver.transport.save().unwrap();
    let balloon = Balloon::new(driver.mem.clone()).unwrap();
    let restored = balloon.control();
    FakeDriver::with_mem(balloon, driver.mem.clone()).transport.restore(&state).unwrap();
    assert_eq!((restored.target_mib(), restored.actual_mib()), (2, 1));
    let smaller = guest_ram(1 << 20);
    let balloon = Balloon::new(smaller.clone()).unwrap();
    assert!(FakeDriver::with_mem(balloon, smaller).transport.restore(&state).is_err());
}

#[test]
fn random_chains_do_no_harm() {
    let mut random = crate::virtio::fake_queue::Random::new(0x1234_5678);
    let (mut driver, _) = driver();
    let mut broken = 0;
    for _ in 0..4000 {
        let queue = [INFLATE, DEFLATE, REPORTING][random.below(3) as usize];
        driver.queues[usize::from(queue)].scribble(&mut random, MEM_SIZE as u64);
        driver.notify(queue);
        if is_broken(&driver) {
            broken += 1;
            assert_eq!(driver.initialize(1 << PAGE_REPORTING), 0xf);
        }
    }
    assert!(broken > 100, "{broken}");
}

#[test]
fn figures_are_taken_and_asked_for_again() {
    let ram = guest_ram(MEM_SIZE);
    let balloon = Balloon::with_options(ram.clone(), 1, false).unwrap();
    let control = balloon.control();
    let mut driver = FakeDriver::with_mem(balloon, ram.clone());
    driver.initialize(1 << PAGE_REPORTING | 1 << STATISTICS);
    let send = |driver: &mut FakeDriver, figures: &[(u16, u64)]| {
        let bytes: Vec<u8> = figures
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        driver.fill(LIST, &bytes);
        driver.submit(THIRD, &[Buffer::readable(LIST, bytes.len() as u32)])
    };
    let head = send(&mut driver, &[(4, 400), (5, 500), (77, 1)]);
    assert_eq!(driver.take_used(THIRD), None, "it is kept");
    let statistics = control.statistics().unwrap();
    assert_eq!(statistics.figures()[3..6], [None, Some(400), Some(500)]);
    // One that is saved and restored still has the buffer.
    let saved = driver.transport.save().unwrap();
    driver.transport.process_host_event(TIMER, EventSet::IN);
    assert_eq!(driver.take_used(THIRD), Some((head, 0)));
    let again = send(&mut driver, &[(4, 401)]);
    assert_eq!(statistics.figures()[4], Some(401));
    // A second buffer is none that a driver has.
    let second = send(&mut driver, &[(4, 402)]);
    assert_eq!(driver.take_used(THIRD), Some((second, 0)));
    assert_ne!(again, second);
    let restored = FakeDriver::with_mem(Balloon::with_options(ram.clone(), 1, false).unwrap(), ram.clone());
    restored.transport.restore(&saved).unwrap();
    let without = FakeDriver::with_mem(Balloon::new(ram.clone()).unwrap(), ram);
    assert!(without.transport.restore(&saved).is_err());
    statistics.set_interval(60).unwrap();
    assert_eq!(statistics.interval_s(), 60);
}

#[test]
fn a_driver_without_figures_reports_where_it_did() {
    let ram = guest_ram(MEM_SIZE);
    let mut driver = FakeDriver::with_mem(Balloon::with_options(ram.clone(), 1, false).unwrap(), ram);
    driver.initialize(1 << PAGE_REPORTING);
    driver.fill(PAGES, &[7; 8 * PAGE as usize]);
    driver.submit(REPORTING, &[Buffer::writable(PAGES, PAGE as u32)]);
    assert!(driver.take_used(REPORTING).is_some());
    assert!(!kept(&driver)[0]);
}

const HINTING: u16 = THIRD;
/// Of the command in the configuration space.
const COMMAND: u64 = register::CONFIG + 8;

fn hinting_driver() -> (FakeDriver, BalloonControl) {
    let ram = guest_ram(MEM_SIZE);
    let balloon = Balloon::with_options(ram.clone(), 0, true).unwrap();
    let control = balloon.control();
    assert_eq!(control.start_hinting(true), Err(HintingError::NotActive));
    let mut driver = FakeDriver::with_mem(balloon, ram);
    assert_eq!(driver.initialize(1 << FREE_PAGE_HINT), 0xf);
    driver.fill(PAGES, &[7; 8 * PAGE as usize]);
    (driver, control)
}

fn say(driver: &mut FakeDriver, word: u32) {
    driver.fill(LIST, &word.to_le_bytes());
    driver.submit(HINTING, &[Buffer::readable(LIST, 4)]);
}

fn name_pages(driver: &mut FakeDriver, first: u64, count: u32) {
    driver.submit(HINTING, &[Buffer::writable(PAGES + first * PAGE, count * PAGE as u32)]);
}

#[test]
fn pages_that_belong_to_the_run_are_given_back_and_the_driver_hears_of_its_end() {
    let (mut driver, control) = hinting_driver();
    name_pages(&mut driver, 0, 1);
    assert_eq!(kept(&driver), [true; 8], "nobody asked");
    control.start_hinting(true).unwrap();
    driver.transport.process_host_event(0, EventSet::IN);
    assert!(driver.take_interrupt());
    assert_eq!(driver.read(COMMAND), 2);
    name_pages(&mut driver, 0, 1);
    say(&mut driver, 9);
    name_pages(&mut driver, 1, 1);
    assert_eq!(kept(&driver), [true; 8], "of another run");
    say(&mut driver, 2);
    name_pages(&mut driver, 2, 3);
    assert_eq!(kept(&driver), [true, true, false, false, false, true, true, true]);
    assert_eq!(control.hinting_status(), Ok(HintingStatus { host: 2, guest: Some(2) }));
    say(&mut driver, hinting::STOP);
    driver.transport.process_host_event(0, EventSet::IN);
    assert_eq!(driver.read(COMMAND), hinting::DONE);
    name_pages(&mut driver, 6, 1);
    assert!(kept(&driver)[6], "the run is over");
    control.start_hinting(false).unwrap();
    say(&mut driver, 3);
    say(&mut driver, hinting::STOP);
    assert_eq!(control.hinting_status(), Ok(HintingStatus { host: 3, guest: Some(0) }));
    control.stop_hinting().unwrap();
    assert_eq!(driver.read(COMMAND), hinting::DONE);
    assert!(!is_broken(&driver));
}

#[test]
fn pages_outside_ram_end_a_run_and_without_hinting_there_is_none() {
    let (mut driver, control) = hinting_driver();
    control.start_hinting(true).unwrap();
    say(&mut driver, 2);
    driver.submit(HINTING, &[Buffer::writable(1 << 40, 4096)]);
    assert!(is_broken(&driver));
    let (_driver, control) = driver_with(guest_ram(MEM_SIZE));
    assert_eq!(control.start_hinting(true), Err(HintingError::Disabled));
    assert_eq!(control.hinting_status(), Err(HintingError::Disabled));
}

#[test]
fn queues_have_no_gaps_between_them() {
    use Purpose::*;
    assert_eq!(purposes(0), [Inflate, Deflate]);
    assert_eq!(purposes(1 << PAGE_REPORTING), [Inflate, Deflate, Reporting]);
    assert_eq!(purposes(1 << FREE_PAGE_HINT | 1 << PAGE_REPORTING), [Inflate, Deflate, Hinting, Reporting]);
    assert_eq!(purposes(!0), [Inflate, Deflate, Statistics, Hinting, Reporting]);
}
