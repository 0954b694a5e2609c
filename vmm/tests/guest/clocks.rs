//! PID 1 of a guest that is saved and restored: reads its clocks without a pause, waits for timers, draws
//! random bytes as soon as its generation changes, and leaves all it sees in one page of its memory, which
//! the test finds by its cookie.

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{ptr, thread};

const REALTIME: c_int = 0;
const MONOTONIC: c_int = 1;
const BOOTTIME: c_int = 7;
const SECOND: u64 = 1_000_000_000;
/// Two readings of one clock in a row are less apart than this, unless it jumped. The guest is at times not
/// run for a while, so it is generous.
const JUMP: u64 = 4 * SECOND;
const COOKIE: u64 = 0x6c69_6768_7465_7221;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

#[repr(C)]
struct TimerSpec {
    interval: Timespec,
    first: Timespec,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn getrandom(buffer: *mut c_void, len: usize, flags: u32) -> isize;
    fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn mount(
        from: *const c_char,
        at: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn timerfd_create(clock: c_int, flags: c_int) -> c_int;
    fn timerfd_settime(fd: c_int, flags: c_int, new: *const TimerSpec, old: *mut TimerSpec) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize;
    fn sched_setaffinity(pid: c_int, len: usize, mask: *const c_ulong) -> c_int;
}

/// What the test reads.
#[repr(C, align(4096))]
struct Page {
    cookie: AtomicU64,
    /// The clocks, read one after the other, again and again.
    monotonic: AtomicU64,
    realtime: AtomicU64,
    boottime: AtomicU64,
    /// Generation seen by the clock reader, by the one who waits for it, and by each CPU's watcher.
    generation: AtomicU64,
    awaited: AtomicU64,
    /// Readings that went backwards, or jumped before the generation changed.
    backwards: AtomicU64,
    early: AtomicU64,
    /// The monotonic clock's last reading before and its first after the change.
    before: AtomicU64,
    after: AtomicU64,
    /// Expirations of a 1 s interval timer, and the most that one read gave.
    expired: AtomicU64,
    burst: AtomicU64,
    /// The first random bytes of a generation: by system call and from /dev/urandom.
    random: [AtomicU64; 4],
    /// How often the clocks were read.
    turns: AtomicU64,
    /// What a generator within the program gave last.
    own: AtomicU64,
}

static PAGE: Page = Page {
    cookie: AtomicU64::new(0),
    monotonic: AtomicU64::new(0),
    realtime: AtomicU64::new(0),
    boottime: AtomicU64::new(0),
    generation: AtomicU64::new(0),
    awaited: AtomicU64::new(0),
    backwards: AtomicU64::new(0),
    early: AtomicU64::new(0),
    before: AtomicU64::new(0),
    after: AtomicU64::new(0),
    expired: AtomicU64::new(0),
    burst: AtomicU64::new(0),
    random: [const { AtomicU64::new(0) }; 4],
    turns: AtomicU64::new(0),
    own: AtomicU64::new(0),
};

fn now(clock: c_int) -> u64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    unsafe { clock_gettime(clock, &mut time) };
    time.seconds as u64 * SECOND + time.nanoseconds as u64
}

fn draw() {
    let mut words = [0_u64; 4];
    unsafe { getrandom(words.as_mut_ptr().cast(), 16, 0) };
    let mut bytes = [0; 16];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    words[2] = u64::from_ne_bytes(bytes[..8].try_into().unwrap());
    words[3] = u64::from_ne_bytes(bytes[8..].try_into().unwrap());
    for (slot, word) in PAGE.random.iter().zip(words) {
        slot.store(word, Relaxed);
    }
}

/// A generator as a library has one: seeded once and after each change of the generation.
struct Generator {
    counter: *const u32,
    generation: u32,
    state: u64,
}

impl Generator {
    fn new(counter: *const u32) -> Self {
        let mut generator = Generator { counter, generation: 0, state: 0 };
        generator.seed();
        generator
    }

    fn seed(&mut self) {
        self.generation = unsafe { self.counter.read_volatile() };
        unsafe { getrandom((&raw mut self.state).cast(), 8, 0) };
    }

    /// Nobody gets a number that was drawn from the state of another generation.
    fn draw(&mut self) -> u64 {
        loop {
            // splitmix64.
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if unsafe { self.counter.read_volatile() } == self.generation {
                return word ^ (word >> 31);
            }
            self.seed();
        }
    }
}

fn counter() -> *const u32 {
    let device = File::open("/dev/sysgenid").unwrap();
    let page = unsafe { mmap(ptr::null_mut(), 4096, 1, 1, device.as_raw_fd(), 0) };
    assert!(page as isize != -1, "/dev/sysgenid cannot be mapped");
    page.cast()
}

/// Reads the clocks for ever on CPU `cpu`; the first one reports.
fn watch(cpu: usize) {
    let mask: c_ulong = 1 << cpu;
    unsafe { sched_setaffinity(0, 8, &mask) };
    let counter = counter();
    let mut generator = Generator::new(counter);
    let generation = || u64::from(unsafe { counter.read_volatile() });
    let mut reported = generation();
    // A generation is read before the clocks and after them: a jump between two turns is early when the one
    // before the first turn's clocks is still there after the second's.
    let (mut known, mut monotonic, mut realtime) = (generation(), now(MONOTONIC), now(REALTIME));
    loop {
        let first = generation();
        let (mono, real, boot) = (now(MONOTONIC), now(REALTIME), now(BOOTTIME));
        let current = generation();
        if mono < monotonic {
            PAGE.backwards.fetch_add(1, Relaxed);
        }
        if current == known && (mono > monotonic + JUMP || real.abs_diff(realtime) > JUMP) {
            PAGE.early.fetch_add(1, Relaxed);
        }
        if cpu == 0 {
            if current != reported {
                PAGE.before.store(monotonic, Relaxed);
                PAGE.after.store(mono, Relaxed);
                draw();
                reported = current;
            }
            PAGE.generation.store(current, Relaxed);
            PAGE.boottime.store(boot, Relaxed);
            PAGE.monotonic.store(mono, Relaxed);
            PAGE.realtime.store(now(REALTIME), Relaxed);
            PAGE.own.store(generator.draw(), Relaxed);
            PAGE.turns.fetch_add(1, Relaxed);
        }
        (known, monotonic, realtime) = (first, mono, real);
    }
}

fn count_expirations() {
    let second = || Timespec { seconds: 1, nanoseconds: 0 };
    let timer = TimerSpec { interval: second(), first: second() };
    let fd = unsafe { timerfd_create(MONOTONIC, 0) };
    unsafe { timerfd_settime(fd, 0, &timer, ptr::null_mut()) };
    loop {
        let mut expired = 0_u64;
        unsafe { read(fd, (&raw mut expired).cast(), 8) };
        PAGE.expired.fetch_add(expired, Relaxed);
        PAGE.burst.fetch_max(expired, Relaxed);
    }
}

/// Waits for generations as a program would that has other things to do.
fn await_generations() {
    let mut device = File::options().read(true).write(true).open("/dev/sysgenid").unwrap();
    loop {
        let mut bytes = [0; 4];
        device.read_exact(&mut bytes).unwrap();
        PAGE.awaited.store(u32::from_ne_bytes(bytes).into(), Relaxed);
        device.write_all(&bytes).unwrap();
    }
}

fn main() {
    unsafe { mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, ptr::null()) };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    thread::spawn(count_expirations);
    thread::spawn(await_generations);
    for cpu in 1..cpus {
        thread::spawn(move || watch(cpu));
    }
    draw();
    // Rotated, so that only this page has it.
    PAGE.cookie.store(COOKIE.rotate_left(1), Relaxed);
    watch(0);
}
