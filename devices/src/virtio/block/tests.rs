//! A driver in miniature against a real file.

mod limits;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use tempfile::TempDir;

use super::*;
use crate::bus::BusDevice;
use crate::virtio::testing::{BUFFERS, Buffer, EVENT_IDX, FakeDriver, register, status};

const SECTORS: u64 = 4096;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x2000;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const FLUSH_FEATURE: u64 = 1 << VIRTIO_BLK_F_FLUSH;

struct Rig {
    dir: TempDir,
    driver: FakeDriver,
}

impl Rig {
    fn new() -> Self {
        Self::with(false, FLUSH_FEATURE)
    }

    fn with(read_only: bool, features: u64) -> Self {
        Self::around(read_only, features, RateLimits::default())
    }

    fn around(read_only: bool, features: u64, limits: RateLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..SECTORS).map(|sector| [sector as u8; 512]).collect::<Vec<_>>().concat();
        fs::write(dir.path().join("disk"), content).unwrap();
        let driver = FakeDriver::start(open_limited(&dir, read_only, limits), features);
        Self { dir, driver }
    }

    fn disk(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file = fs::File::open(self.dir.path().join("disk")).unwrap();
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.fill(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    }

    /// Sends a request with this data; returns its status and the number of bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        self.driver.fill(STATUS, &[0xee]);
        let chain = [&[Buffer::readable(HEADER, 16)], data, &[Buffer::writable(STATUS, 1)]].concat();
        let head = self.driver.submit(0, &chain);
        let (completed, written) = self.driver.take_used(0).expect("the request completes");
        assert_eq!(completed, head);
        (self.driver.peek(STATUS, 1)[0], written)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        for (at, (sector, sectors, flags)) in (DATA..).step_by(16).zip(ranges) {
            let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
            self.driver.fill(at, &bytes);
        }
        self.request(kind, 0, &[Buffer::readable(DATA, 16 * ranges.len() as u32)]).0
    }

    fn is_broken(&self) -> bool {
        self.driver.read(register::STATUS) & status::NEEDS_RESET != 0
    }
}

fn open(dir: &TempDir, read_only: bool) -> Block {
    open_limited(dir, read_only, RateLimits::default())
}

fn open_limited(dir: &TempDir, read_only: bool, limits: RateLimits) -> Block {
    let config = BlockConfig {
        path: dir.path().join("disk"),
        read_only,
        serial: "lighter-0".into(),
        engine: BlockEngine::Sync,
        limits,
    };
    Block::open(&config).unwrap()
}

#[test]
fn configuration_space_describes_the_disk() {
    let rig = Rig::new();
    let word = |offset| rig.driver.read(register::CONFIG + offset);
    assert_eq!(word(0), SECTORS as u32);
    assert_eq!(word(4), 0);
    assert_eq!(word(8), 256 << 10);
    assert_eq!(word(12), 126);
    assert_eq!(word(20), 512);
    assert_eq!(word(24), 0x0008_0003);
    assert_eq!(word(36), 1 << 22);
    assert_eq!(word(40), 16);
    assert_eq!(word(44), 8);
    assert_eq!(word(48), 1 << 16);
    assert_eq!(word(52), 1);
    assert_eq!(word(56), 1);
    assert_eq!(word(60), 0);
    let mut across = [0xaa; 8];
    rig.driver.transport.read(register::CONFIG + 56, &mut across);
    assert_eq!(across, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn data_is_read_into_several_segments() {
    let mut rig = Rig::new();
    let segments =
        [Buffer::writable(DATA, 512), Buffer::writable(DATA + 4096, 100), Buffer::writable(DATA + 8192, 412)];
    assert_eq!(rig.request(READ, 5, &segments), (0, 1025));
    assert_eq!(rig.driver.peek(DATA, 512), [5; 512]);
    assert_eq!(rig.driver.peek(DATA + 4096, 101), [&[6; 100][..], &[0]].concat());
    assert_eq!(rig.driver.peek(DATA + 8192, 413), [&[6; 412][..], &[0]].concat());
}

#[test]
fn what_was_read_is_marked_dirty() {
    use vm_memory::GuestMemoryBackend;
    use vm_memory::bitmap::Bitmap;
    let mut rig = Rig::new();
    let page = DATA + 0x10_0000;
    let dirty = |rig: &Rig| {
        let slice = GuestMemoryBackend::get_slice(&rig.driver.mem, vm_memory::GuestAddress(page), 512);
        slice.unwrap().bitmap().dirty_at(0)
    };
    assert!(!dirty(&rig));
    rig.request(READ, 0, &[Buffer::writable(page, 512)]);
    assert!(dirty(&rig));
}

#[test]
fn data_is_written_from_several_segments() {
    let mut rig = Rig::new();
    rig.driver.fill(DATA, &[0xa1; 300]);
    rig.driver.fill(DATA + 4096, &[0xa2; 212]);
    let segments = [Buffer::readable(DATA, 300), Buffer::readable(DATA + 4096, 212)];
    assert_eq!(rig.request(WRITE, 7, &segments), (0, 1));
    assert_eq!(rig.disk(7 * 512, 512), [[0xa1; 300].as_slice(), &[0xa2; 212]].concat());
    assert_eq!(rig.disk(6 * 512, 512), [6; 512]);
    assert_eq!(rig.disk(8 * 512, 512), [8; 512]);
    assert_eq!(rig.request(FLUSH, 0, &[]), (0, 1));
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut rig = Rig::new();
    rig.header(READ, 9);
    rig.driver.submit(
        0,
        &[
            Buffer::readable(HEADER, 3),
            Buffer::readable(HEADER + 3, 13),
            Buffer::writable(DATA, 500),
            Buffer::writable(DATA + 500, 13),
        ],
    );
    assert_eq!(rig.driver.take_used(0).unwrap().1, 513);
    assert_eq!(rig.driver.peek(DATA, 513), [&[9; 512][..], &[0]].concat());
}

#[test]
fn a_request_may_be_in_an_indirect_table() {
    let mut rig = Rig::new();
    let table = BUFFERS + 0x8_0000;
    rig.header(READ, 3);
    let segments = 100;
    let mut entries = vec![(HEADER, 16u32, 1u16)];
    entries.extend((0..segments).map(|index| (DATA + 512 * index, 512, 3)));
    entries.push((STATUS, 1, 2));
    for (index, (addr, len, flags)) in (0u64..).zip(entries.iter().copied()) {
        let next = (index + 1) as u16;
        let bytes =
            [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        rig.driver.fill(table + 16 * index, &bytes);
    }
    let indirect = Buffer::readable(table, 16 * entries.len() as u32);
    rig.driver.queues[0].write_descriptor(0, indirect, 4, 0);
    rig.driver.queues[0].publish(0);
    rig.driver.notify(0);
    assert_eq!(rig.driver.take_used(0), Some((0, 512 * segments as u32 + 1)));
    assert_eq!(rig.driver.peek(DATA + 512 * 99, 512), [102; 512]);
}

#[test]
fn the_serial_number_is_told() {
    let mut rig = Rig::new();
    assert_eq!(rig.request(GET_ID, 0, &[Buffer::writable(DATA, 20)]), (0, 21));
    assert_eq!(rig.driver.peek(DATA, 20), *b"lighter-0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn discard_frees_space_and_leaves_the_rest() {
    let mut rig = Rig::new();
    let blocks = |rig: &Rig| fs::metadata(rig.dir.path().join("disk")).unwrap().blocks();
    let before = blocks(&rig);
    assert_eq!(rig.ranges(DISCARD, &[(8, 64, 0), (1024, 1024, 0)]), 0);
    assert!(blocks(&rig) <= before - 1000, "{} of {before} blocks left", blocks(&rig));
    assert_eq!(rig.disk(7 * 512, 512), [7; 512]);
    assert_eq!(rig.disk(8 * 512, 64 * 512), vec![0; 64 * 512]);
    assert_eq!(rig.disk(72 * 512, 512), [72; 512]);
    assert_eq!(fs::metadata(rig.dir.path().join("disk")).unwrap().len(), SECTORS * 512);
}

#[test]
fn write_zeroes_writes_zeroes_either_way() {
    let mut rig = Rig::new();
    for (unmap, sector) in [(0, 16), (1, 32)] {
        assert_eq!(rig.ranges(WRITE_ZEROES, &[(sector, 3, unmap)]), 0);
        assert_eq!(rig.disk(sector * 512, 3 * 512), [0; 3 * 512]);
        assert_eq!(rig.disk((sector + 3) * 512, 1), [sector as u8 + 3]);
        assert_eq!(rig.disk((sector - 1) * 512, 1), [sector as u8 - 1]);
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut rig = Rig::with(true, u64::MAX);
    assert_eq!(rig.request(WRITE, 0, &[Buffer::readable(DATA, 512)]), (1, 1));
    assert_eq!(rig.ranges(DISCARD, &[(0, 8, 0)]), 1);
    assert_eq!(rig.ranges(WRITE_ZEROES, &[(1, 8, 0)]), 1);
    assert_eq!(rig.request(FLUSH, 0, &[]), (0, 1));
    assert_eq!(rig.disk(512, 512), [1; 512]);
    assert_eq!(rig.request(READ, 1, &[Buffer::writable(DATA, 512)]), (0, 513));
}

#[test]
fn a_disk_that_was_cut_off_gives_an_error_and_the_queue_goes_on() {
    let mut rig = Rig::new();
    let file = OpenOptions::new().write(true).open(rig.dir.path().join("disk")).unwrap();
    file.set_len(4096).unwrap();
    rig.driver.observed.take();
    for _ in 0..4 {
        assert_eq!(rig.request(READ, 0, &[Buffer::writable(DATA, 8192)]), (1, 1));
    }
    assert_eq!(rig.request(READ, 0, &[Buffer::writable(DATA, 512)]), (0, 513));
    assert_eq!(rig.driver.transport.host_failures(), 4);
    let report =
        |count| format!("test: host failure {count}: read 8192 bytes at 0x0: unexpected end of file");
    assert_eq!(rig.driver.observed.take(), [1, 2, 4].map(report));
    assert!(!rig.is_broken());
}

#[test]
fn nonsense_gets_a_status() {
    let mut rig = Rig::new();
    let table = [
        (READ, SECTORS, vec![Buffer::writable(DATA, 512)], 1),
        (READ, u64::MAX, vec![Buffer::writable(DATA, 512)], 1),
        (READ, 0, vec![Buffer::writable(DATA, 13)], 1),
        (WRITE, SECTORS - 1, vec![Buffer::readable(DATA, 1024)], 1),
        (WRITE, 0, vec![Buffer::writable(DATA, 512)], 1),
        (GET_ID, 0, vec![Buffer::writable(DATA, 19)], 1),
        (DISCARD, 0, vec![], 1),
        (99, 0, vec![], 2),
    ];
    for (kind, sector, data, expected) in table {
        assert_eq!(rig.request(kind, sector, &data), (expected, 1), "{kind} {sector} {data:?}");
    }
    assert!(!rig.is_broken());
}

#[test]
fn chains_that_are_no_requests_break_the_protocol() {
    let table = [
        vec![Buffer::readable(HEADER, 16)],
        vec![Buffer::readable(HEADER, 15), Buffer::writable(STATUS, 1)],
        vec![Buffer::writable(STATUS, 1)],
        vec![Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 0)],
        vec![Buffer::writable(STATUS, 1), Buffer::readable(HEADER, 16)],
        vec![Buffer::readable(HEADER, 16), Buffer::writable(1 << 40, 513)],
        vec![Buffer::readable(u64::MAX, 16), Buffer::writable(STATUS, 1)],
    ];
    for chain in table {
        let mut rig = Rig::new();
        rig.header(READ, 0);
        rig.driver.submit(0, &chain);
        assert!(rig.is_broken(), "{chain:?}");
        assert_eq!(rig.driver.take_used(0), None);
        assert_eq!(rig.driver.initialize(FLUSH_FEATURE), 0xf);
        assert_eq!(rig.request(READ, 1, &[Buffer::writable(DATA, 512)]), (0, 513));
    }
}

#[test]
fn loops_of_descriptors_end() {
    let mut rig = Rig::new();
    rig.header(READ, 0);
    rig.driver.queues[0].write_descriptor(0, Buffer::readable(HEADER, 16), 1, 1);
    rig.driver.queues[0].write_descriptor(1, Buffer::writable(DATA, 512), 3, 1);
    rig.driver.queues[0].publish(0);
    rig.driver.notify(0);
    assert!(rig.is_broken());
}

#[test]
fn the_driver_is_interrupted_once_for_a_batch() {
    let mut rig = Rig::with(false, FLUSH_FEATURE | EVENT_IDX);
    rig.header(FLUSH, 0);
    for _ in 0..4 {
        rig.driver.queues[0].add(&[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1)]);
    }
    rig.driver.notify(0);
    assert_eq!(rig.driver.transport.irq().read().unwrap(), 1);
    assert_eq!(std::iter::from_fn(|| rig.driver.take_used(0)).count(), 4);
    // The driver has not moved `used_event`, so it wants to hear of nothing more.
    rig.request(FLUSH, 0, &[]);
    assert!(!rig.driver.take_interrupt());
}

#[test]
fn a_driver_without_flush_gets_durable_writes() {
    let mut rig = Rig::with(false, 0);
    rig.driver.fill(DATA, &[0x77; 512]);
    assert_eq!(rig.request(WRITE, 0, &[Buffer::readable(DATA, 512)]), (0, 1));
    assert_eq!(rig.disk(0, 512), [0x77; 512]);
    // This file cannot be synced, which shows that it is tried.
    let file = fs::File::open("/dev/null").unwrap();
    let mut backend = Backend { file, mapped: None, serial: [0; SERIAL_BYTES] };
    assert!(backend.file.sync_data().is_err());
    let empty = GuestBuffers::empty();
    let data = Data { readable: &empty, start: 0, writable: &empty };
    let discard = request::Request::Discard(Vec::new());
    assert!(backend.execute(&discard, &data, true).is_err());
    assert!(backend.execute(&discard, &data, false).is_ok());
    assert!(backend.execute(&request::Request::Flush, &data, false).is_err());
}

#[test]
fn a_restored_disk_goes_on_where_it_was() {
    let mut rig = Rig::new();
    rig.request(READ, 1, &[Buffer::writable(DATA, 512)]);
    let state = rig.driver.transport.save().unwrap();
    rig.header(READ, 2);
    rig.driver.queues[0].add(&[
        Buffer::readable(HEADER, 16),
        Buffer::writable(DATA, 512),
        Buffer::writable(STATUS, 1),
    ]);
    let restored = FakeDriver::with_mem(open(&rig.dir, false), rig.driver.mem.clone());
    restored.transport.restore(&state).unwrap();
    restored.run();
    assert_eq!(rig.driver.take_used(0).unwrap().1, 513);
    assert_eq!(rig.driver.peek(DATA, 512), [2; 512]);
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let rig = Rig::new();
    let state = rig.driver.transport.save().unwrap();
    let read_only = FakeDriver::new(open(&rig.dir, true));
    assert!(read_only.transport.restore(&state).is_err());
    fs::write(rig.dir.path().join("disk"), [0; 512]).unwrap();
    let smaller = FakeDriver::new(open(&rig.dir, false));
    assert!(smaller.transport.restore(&state).is_err());
}

#[test]
fn a_drive_restored_with_a_medium_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), []).unwrap();
    let empty = FakeDriver::start(open(&dir, false), FLUSH_FEATURE);
    assert_eq!(empty.read(register::CONFIG), 0);
    let state = empty.transport.save().unwrap();
    let generation = empty.read(register::CONFIG_GENERATION);

    fs::write(dir.path().join("disk"), [7; 4096]).unwrap();
    assert!(FakeDriver::new(open(&dir, true)).transport.restore(&state).is_err(), "now read-only");
    let restored = FakeDriver::with_mem(open(&dir, false), empty.mem.clone());
    restored.transport.restore(&state).unwrap();
    assert_eq!(restored.read(register::CONFIG), 8);
    assert!(restored.take_interrupt());
    assert_eq!(restored.read(register::INTERRUPT_STATUS), 2);
    assert_ne!(restored.read(register::CONFIG_GENERATION), generation);
    // A medium that was there is none that is new.
    let again = FakeDriver::with_mem(open(&dir, false), empty.mem.clone());
    restored.write(register::INTERRUPT_ACK, 2);
    again.transport.restore(&restored.transport.save().unwrap()).unwrap();
    assert_eq!(again.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn another_medium_is_read_at_once_and_one_that_is_none_leaves_the_old_one() {
    for engine in [BlockEngine::Sync, BlockEngine::IoUring] {
        let mut rig = Rig::new();
        let mut disk = open(&rig.dir, false);
        disk.engine = engine;
        rig.driver = FakeDriver::start(disk, FLUSH_FEATURE);
        assert_eq!(rig.request(READ, 1, &[Buffer::writable(DATA, 512)]).0, 0);
        assert_eq!(rig.driver.peek(DATA, 512), [1; 512]);
        let other = rig.dir.path().join("other");
        fs::write(&other, [0xab; 2 * 512]).unwrap();
        let missing = rig.dir.path().join("missing");
        let message = rig.driver.transport.change_medium(&missing).unwrap_err();
        assert!(message.contains("No such file"), "{message}");
        assert!(rig.driver.transport.change_medium(rig.dir.path()).is_err());
        rig.driver.transport.change_medium(&other).unwrap();
        let mut capacity = [0; 8];
        rig.driver.transport.read(0x100, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 2);
        assert_eq!(rig.request(READ, 1, &[Buffer::writable(DATA, 512)]).0, 0);
        assert_eq!(rig.driver.peek(DATA, 512), [0xab; 512]);
        assert_ne!(rig.request(READ, 2, &[Buffer::writable(DATA, 512)]).0, 0);
        assert_eq!(rig.disk(512, 512), [1; 512]);
    }
}

#[test]
fn a_drive_without_a_medium_reads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), []).unwrap();
    let driver = FakeDriver::start(open(&dir, true), 0);
    let mut rig = Rig { driver, dir };
    assert_eq!(rig.request(READ, 0, &[Buffer::writable(DATA, 512)]), (1, 1));
    assert!(!rig.is_broken());
}

#[test]
fn files_that_are_no_disks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: PathBuf, serial: &str| {
        let limits = RateLimits::default();
        Block::open(&BlockConfig {
            path,
            read_only: true,
            serial: serial.into(),
            engine: BlockEngine::Sync,
            limits,
        })
        .err()
    };
    let file = |name: &str, len: usize| {
        let path = dir.path().join(name);
        fs::write(&path, vec![0; len]).unwrap();
        path
    };
    assert!(matches!(open(dir.path().join("none"), ""), Some(BlockError::OpenDisk { .. })));
    assert!(matches!(open(dir.path().into(), ""), Some(BlockError::NotADisk { .. })));
    assert!(matches!(open("/dev/null".into(), ""), Some(BlockError::NotADisk { .. })));
    assert!(matches!(open(file("odd", 513), ""), Some(BlockError::InvalidSize { size: 513, .. })));
    let long = "x".repeat(21);
    assert!(matches!(open(file("good", 512), &long), Some(BlockError::SerialTooLong { .. })));
    assert!(open(file("fits", 512), &long[1..]).is_none());
}

/// A small generator of numbers (xorshift64*), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

#[test]
fn random_chains_are_answered_once_or_break_the_protocol() {
    let mut rig = Rig::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut answered, mut broken) = (0, 0);
    for _ in 0..4_000 {
        let kind = [READ, WRITE, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99][random.next(7) as usize];
        rig.header(kind, random.next(SECTORS + 2));
        let entry = [random.next(SECTORS + 2), random.next(64) | (random.next(3) << 32)];
        rig.driver.fill(DATA, &entry.map(u64::to_le_bytes).concat());
        let head = random.next(8) as u16;
        for index in 0..8 {
            let addr = [HEADER, DATA, DATA + 8, STATUS, (8 << 20) - 256][random.next(5) as usize];
            let len = [0, 1, 15, 16, 20, 496, 512, 1024][random.next(8) as usize];
            let buffer =
                if index == head { Buffer::readable(HEADER, 16) } else { Buffer::readable(addr, len) };
            let flags = if index == head { 1 } else { [0, 1, 2, 2, 2, 3, 3, 4][random.next(8) as usize] };
            rig.driver.queues[0].write_descriptor(index, buffer, flags, random.next(9) as u16);
        }
        rig.driver.queues[0].publish(head);
        rig.driver.notify(0);
        if rig.is_broken() {
            broken += 1;
            assert_eq!(rig.driver.take_used(0), None);
            assert_eq!(rig.driver.initialize(FLUSH_FEATURE), 0xf);
        } else {
            answered += 1;
            let (completed, written) = rig.driver.take_used(0).unwrap();
            assert_eq!(completed, head);
            assert!((1..=8 * 1024).contains(&written), "{written}");
            assert_eq!(rig.driver.take_used(0), None);
        }
    }
    assert!(answered > 500 && broken > 500, "{answered} answered, {broken} broken");
    assert_eq!(fs::metadata(rig.dir.path().join("disk")).unwrap().len(), SECTORS * SECTOR_SIZE);
}

mod io_uring {
    //! The same device with the kernel working on its requests.

    use std::io::Write;
    use std::time::Duration;

    use super::*;

    impl Rig {
        fn with_ring(features: u64) -> Self {
            let mut rig = Self::with(false, features);
            let config = BlockConfig {
                path: rig.dir.path().join("disk"),
                read_only: false,
                serial: String::new(),
                engine: BlockEngine::IoUring,
                limits: RateLimits::default(),
            };
            rig.driver = FakeDriver::start(Block::open(&config).unwrap(), features);
            rig
        }

        /// Makes a request available and notifies; it may be in flight afterwards.
        fn begin(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
            self.header(kind, sector);
            self.driver.fill(STATUS, &[0xee]);
            let chain = [&[Buffer::readable(HEADER, 16)], data, &[Buffer::writable(STATUS, 1)]].concat();
            self.driver.submit(0, &chain)
        }

        /// Lets the event loop run until the request is used; gives its status and the bytes written.
        fn wait(&mut self) -> (u8, u32) {
            for _ in 0..5_000 {
                if let Some((_, written)) = self.driver.take_used(0) {
                    return (self.driver.peek(STATUS, 1)[0], written);
                }
                std::thread::sleep(Duration::from_millis(1));
                self.driver.transport.process_host_event(0, EventSet::IN);
            }
            panic!("the request is in flight for five seconds");
        }

        fn run(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
            self.begin(kind, sector, data);
            self.wait()
        }
    }

    /// A disk of 8 sectors whose reads wait until somebody writes into the pipe.
    fn slow_disk() -> (Block, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let block = Block {
            ring: None,
            ring_changed: false,
            backend: Backend { file, mapped: None, serial: [0; SERIAL_BYTES] },
            disk: Disk { capacity_sectors: 8, read_only: true },
            engine: BlockEngine::IoUring,
            limiter: RateLimiter::new(&RateLimits::default()).unwrap(),
            failure: None,
            medium_is_new: false,
            active: None,
        };
        (block, writer)
    }

    fn slow_rig() -> (Rig, std::io::PipeWriter) {
        let (block, writer) = slow_disk();
        let rig = Rig { dir: tempfile::tempdir().unwrap(), driver: FakeDriver::start(block, 0) };
        (rig, writer)
    }

    fn write_later(
        mut writer: std::io::PipeWriter,
        byte: u8,
    ) -> std::thread::JoinHandle<std::io::PipeWriter> {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            writer.write_all(&[byte; 512]).unwrap();
            writer
        })
    }

    #[test]
    fn requests_do_what_they_do_without_a_ring() {
        let mut rig = Rig::with_ring(FLUSH_FEATURE);
        rig.driver.fill(DATA, &[0xa1; 300]);
        rig.driver.fill(DATA + 4096, &[0xa2; 212]);
        let segments = [Buffer::readable(DATA, 300), Buffer::readable(DATA + 4096, 212)];
        assert_eq!(rig.run(WRITE, 7, &segments), (0, 1));
        assert_eq!(rig.run(FLUSH, 0, &[]), (0, 1));
        assert_eq!(rig.disk(7 * 512, 512), [[0xa1; 300].as_slice(), &[0xa2; 212]].concat());
        let segments = [Buffer::writable(DATA, 500), Buffer::writable(DATA + 8192, 12)];
        for _ in 0..2 {
            assert_eq!(rig.run(READ, 7, &segments), (0, 513));
            assert_eq!(rig.driver.peek(DATA + 8192, 13), [&[0xa2; 12][..], &[0]].concat());
        }
        assert_eq!(rig.run(GET_ID, 0, &[Buffer::writable(DATA, 20)]), (0, 21));
        assert_eq!(rig.run(READ, SECTORS, &segments), (1, 1));
    }

    #[test]
    fn a_write_without_flush_is_durable() {
        let mut rig = Rig::with_ring(0);
        rig.driver.fill(DATA, &[0x77; 512]);
        assert_eq!(rig.run(WRITE, 0, &[Buffer::readable(DATA, 512)]), (0, 1));
        assert_eq!(rig.disk(0, 512), [0x77; 512]);
    }

    #[test]
    fn a_disk_that_was_cut_off_gives_an_error() {
        let mut rig = Rig::with_ring(FLUSH_FEATURE);
        OpenOptions::new().write(true).open(rig.dir.path().join("disk")).unwrap().set_len(4096).unwrap();
        for _ in 0..2 {
            assert_eq!(rig.run(READ, 0, &[Buffer::writable(DATA, 8192)]), (1, 1));
        }
        assert_eq!(rig.run(READ, 0, &[Buffer::writable(DATA, 512)]), (0, 513));
        assert_eq!(rig.driver.transport.host_failures(), 2);
    }

    #[test]
    fn a_request_completes_when_the_kernel_has_done_it() {
        let (mut rig, mut writer) = slow_rig();
        let head = rig.begin(READ, 0, &[Buffer::writable(DATA, 512)]);
        assert_eq!(rig.driver.take_used(0), None);
        let [event, _timer] = rig.driver.transport.take_host_events().unwrap()[..] else {
            panic!("the ring is not polled");
        };
        rig.driver.transport.process_host_event(event.token, EventSet::IN);
        assert_eq!(rig.driver.take_used(0), None, "nothing is done yet");
        writer.write_all(&[9; 512]).unwrap();
        assert_eq!(rig.wait(), (0, 513));
        assert_eq!(head, 0);
        assert_eq!(rig.driver.peek(DATA, 512), [9; 512]);
        assert!(rig.driver.take_interrupt());
    }

    #[test]
    fn a_ring_made_while_polling_is_told_of() {
        let (mut rig, mut writer) = slow_rig();
        rig.driver.transport.take_host_events();
        rig.driver.observed.take();
        assert!(rig.driver.transport.start_polling());
        rig.header(READ, 0);
        let chain = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
        rig.driver.queues[0].add(&chain);
        assert!(rig.driver.transport.poll());
        assert_eq!(rig.driver.observed.take(), ["test: host events"]);
        assert_eq!(rig.driver.transport.take_host_events().unwrap().len(), 2);
        rig.driver.transport.stop_polling();
        writer.write_all(&[3; 512]).unwrap();
        assert_eq!(rig.wait(), (0, 513));
    }

    #[test]
    fn requests_in_flight_are_completed_before_a_snapshot() {
        let (mut rig, writer) = slow_rig();
        rig.begin(READ, 0, &[Buffer::writable(DATA, 512)]);
        assert_eq!(rig.driver.take_used(0), None);
        let writing = write_later(writer, 5);
        let state = rig.driver.transport.save().unwrap();
        assert_eq!(rig.driver.take_used(0).unwrap().1, 513);
        assert_eq!(rig.driver.peek(DATA, 512), [5; 512]);
        let mut writer = writing.join().unwrap();

        // What comes after the snapshot is the restored device's.
        let (mut block, mut other) = slow_disk();
        block.engine = BlockEngine::Sync;
        let restored = FakeDriver::with_mem(block, rig.driver.mem.clone());
        restored.transport.restore(&state).unwrap();
        assert!(restored.take_interrupt(), "the request completed without the driver hearing of it");
        restored.run();
        assert_eq!(rig.driver.take_used(0), None);
        let _ = (writer.write_all(&[0]), other.write_all(&[0]));
    }

    #[test]
    fn a_reset_waits_for_requests_in_flight_and_answers_none() {
        let (mut rig, writer) = slow_rig();
        rig.begin(READ, 0, &[Buffer::writable(DATA, 512)]);
        let writing = write_later(writer, 6);
        rig.driver.write(register::STATUS, 0);
        // The kernel is done with guest memory: it changes no more.
        assert_eq!(rig.driver.peek(DATA, 512), [6; 512]);
        assert_eq!(rig.driver.peek(STATUS, 1), [0xee]);
        assert_eq!(rig.driver.take_used(0), None);
        let mut writer = writing.join().unwrap();
        assert_eq!(rig.driver.initialize(0), 0xf);
        rig.begin(READ, 1, &[Buffer::writable(DATA, 512)]);
        writer.write_all(&[7; 512]).unwrap();
        assert_eq!(rig.wait(), (0, 513));
    }

    #[test]
    fn a_device_is_dropped_when_its_requests_are_done() {
        let (mut rig, writer) = slow_rig();
        rig.begin(READ, 0, &[Buffer::writable(DATA, 512)]);
        let mem = rig.driver.mem.clone();
        let writing = write_later(writer, 8);
        drop(rig);
        let mut byte = [0];
        mem.read_slice(&mut byte, vm_memory::GuestAddress(DATA)).unwrap();
        assert_eq!(byte, [8]);
        writing.join().unwrap();
    }

    #[test]
    fn more_requests_than_a_driver_may_have_wait_in_the_queue() {
        let (mut rig, mut writer) = slow_rig();
        rig.header(READ, 0);
        let chain = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
        let head = rig.begin(READ, 0, &[Buffer::writable(DATA, 512)]);
        rig.driver.queues[0].add(&chain);
        // The same chain again and again, which no driver that keeps the rules does.
        for _ in 0..200 {
            for _ in 0..100 {
                rig.driver.queues[0].publish(head);
            }
            rig.driver.notify(0);
        }
        assert!(!rig.is_broken());
        assert_eq!(rig.driver.take_used(0), None);
        let writing = std::thread::spawn(move || {
            for _ in 0..400 {
                let _ = writer.write_all(&[1; 512]);
            }
        });
        rig.driver.write(register::STATUS, 0);
        assert_eq!(rig.driver.initialize(0), 0xf);
        drop(rig);
        writing.join().unwrap();
    }

    #[test]
    fn random_chains_do_no_harm() {
        let mut rig = Rig::with_ring(FLUSH_FEATURE);
        let mut random = Random(0x0bad_cafe_1234_5677);
        let (mut answered, mut broken) = (0, 0);
        for _ in 0..2_000 {
            rig.header([READ, WRITE, FLUSH, GET_ID, 99][random.next(5) as usize], random.next(SECTORS + 2));
            for index in 0..8 {
                let addr = [HEADER, DATA, STATUS, (8 << 20) - 256][random.next(4) as usize];
                let len = [0, 1, 16, 496, 512, 1024][random.next(6) as usize];
                let buffer =
                    if index == 0 { Buffer::readable(HEADER, 16) } else { Buffer::readable(addr, len) };
                let flags = if index == 0 { 1 } else { [0, 1, 2, 2, 3, 3][random.next(6) as usize] };
                rig.driver.queues[0].write_descriptor(index, buffer, flags, random.next(9) as u16);
            }
            rig.driver.queues[0].publish(0);
            rig.driver.notify(0);
            if rig.is_broken() {
                broken += 1;
                assert_eq!(rig.driver.initialize(FLUSH_FEATURE), 0xf);
            } else {
                answered += 1;
                rig.wait();
            }
        }
        assert!(answered > 200 && broken > 200, "{answered} answered, {broken} broken");
        assert_eq!(fs::metadata(rig.dir.path().join("disk")).unwrap().len(), SECTORS * SECTOR_SIZE);
    }
}

/// The device's wish to be notified, without EVENT_IDX: flag 1 of the used ring.
fn wants_notifications(rig: &Rig) -> bool {
    let used_ring = 0x1_0000 + 0xa000;
    rig.driver.peek(used_ring, 2) == [0, 0]
}

#[test]
fn a_polled_disk_needs_no_notification() {
    let mut rig = Rig::new();
    rig.header(READ, 4);
    let chain = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
    assert!(rig.driver.transport.start_polling());
    assert!(!wants_notifications(&rig));
    assert!(!rig.driver.transport.poll(), "nothing is there");
    for _ in 0..300 {
        rig.driver.queues[0].add(&chain);
        assert!(rig.driver.transport.poll());
        assert_eq!(rig.driver.take_used(0).unwrap().1, 513);
    }
    assert!(!wants_notifications(&rig));
    rig.driver.queues[0].add(&chain);
    rig.driver.transport.stop_polling();
    assert_eq!(rig.driver.take_used(0).unwrap().1, 513, "what came before the end is not lost");
    assert!(wants_notifications(&rig));
    rig.request(READ, 4, &[Buffer::writable(DATA, 512)]);
}

#[test]
fn polling_ends_with_a_reset() {
    let mut rig = Rig::new();
    assert!(rig.driver.transport.start_polling());
    rig.driver.write(register::STATUS, 0);
    assert!(!rig.driver.transport.poll());
    rig.driver.transport.stop_polling();
    assert!(!rig.driver.transport.start_polling(), "an inactive device is not polled");
    assert_eq!(rig.driver.initialize(FLUSH_FEATURE), 0xf);
    assert_eq!(rig.request(READ, 1, &[Buffer::writable(DATA, 512)]), (0, 513));
    assert!(wants_notifications(&rig));
}

#[test]
fn what_was_read_before_is_read_as_it_is_now() {
    let mut rig = Rig::new();
    for content in [1u8, 0x5a, 0xa5] {
        if content != 1 {
            rig.driver.fill(DATA, &[content; 512]);
            assert_eq!(rig.request(WRITE, 1, &[Buffer::readable(DATA, 512)]), (0, 1));
        }
        let segments = [Buffer::writable(DATA + 4096, 100), Buffer::writable(DATA + 8192, 412)];
        assert_eq!(rig.request(READ, 1, &segments), (0, 513));
        assert_eq!(rig.driver.peek(DATA + 4096, 100), [content; 100]);
        assert_eq!(rig.driver.peek(DATA + 8192, 412), [content; 412]);
    }
}
