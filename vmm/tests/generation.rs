//! A Linux guest that is saved and restored twice: both get a new identity and the right time, before any of
//! their programs runs. The guest is `tests/guest/clocks.rs` as PID 1 of our kernel.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::linux::{self, Bench};
use support::memory_file;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::config::{RestoreConfig, VmConfig};
use vmm::vm::{Vm, VmState};

const MEM_SIZE_MIB: u32 = 96;
/// A guest kernel boots within this, even on a loaded host that emulates it.
const BOOT: Duration = Duration::from_secs(90);
/// How long the guest is not there.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a restored guest is watched.
const WATCHED: Duration = Duration::from_millis(2500);
const SECOND: u64 = 1_000_000_000;

fn main() -> ExitCode {
    let tests: Vec<(&str, fn())> = vec![
        ("a_restored_guest_gets_a_new_identity_and_the_time", one_vcpu),
        ("every_vcpu_of_a_restored_guest_is_told", two_vcpus),
        ("a_paused_guest_goes_on_as_if_it_had_not_been_away", paused),
        ("no_two_of_a_hundred_clones_draw_the_same_numbers", hundred_clones),
    ];
    support::main_lacking(tests, linux::kernel().is_none().then(|| "no guest kernel".to_owned()))
}

fn one_vcpu() {
    save_and_restore(1);
}

fn two_vcpus() {
    save_and_restore(2);
}

/// The guest's page, by the names of `clocks.rs`.
#[derive(Clone, Copy, Debug)]
struct Seen {
    monotonic: u64,
    realtime: u64,
    boottime: u64,
    generation: u64,
    awaited: u64,
    backwards: u64,
    early: u64,
    before: u64,
    after: u64,
    expired: u64,
    burst: u64,
    random: [u64; 4],
    turns: u64,
    own: u64,
}

/// What the guest shows at `page`.
fn seen(vm: &Vm, page: u64) -> Seen {
    let words: [u64; 18] = support::words(vm, page);
    let [_, monotonic, realtime, boottime, generation, awaited, backwards, rest @ ..] = words;
    let [early, before, after, expired, burst, r0, r1, r2, r3, turns, own] = rest;
    let random = [r0, r1, r2, r3];
    Seen {
        monotonic,
        realtime,
        boottime,
        generation,
        awaited,
        backwards,
        early,
        before,
        after,
        expired,
        burst,
        random,
        turns,
        own,
    }
}

/// Where the guest's page is: the only one that begins with its cookie.
fn find_page(vm: &Vm) -> Option<u64> {
    const COOKIE: u64 = 0x6c69_6768_7465_7221_u64.rotate_left(1);
    let region = vm.memory().iter().next().unwrap();
    (0..region.len()).step_by(4096).find(|page| {
        let word: u64 = vm.memory().read_obj(GuestAddress(*page)).unwrap();
        word == COOKIE
    })
}

fn run(vm: &mut Vm, duration: Duration) {
    assert_eq!(vm.run_for(duration, |_| ()).unwrap(), None, "the guest runs on");
}

fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// How far the guest's wall clock is from the host's, read while the guest updates it.
fn wall_clock_error(vm: &Vm, page: u64) -> Duration {
    wall_clock_error_to(vm, page, realtime_ns)
}

/// How far it is from the clock `host`.
fn wall_clock_error_to(vm: &Vm, page: u64, host: impl Fn() -> u64) -> Duration {
    let error = || {
        let (turns, before) = (seen(vm, page).turns, host());
        let patience = Instant::now() + WATCHED;
        while seen(vm, page).turns < turns + 2 && Instant::now() < patience {
            std::thread::yield_now();
        }
        let (guest, after) = (seen(vm, page).realtime, host());
        before.saturating_sub(guest).max(guest.saturating_sub(after))
    };
    // The guest may lose its processor while it is looked at: the best of some readings counts.
    Duration::from_nanos((0..5).map(|_| error()).min().unwrap())
}

/// A guest that is up, when it was started, and its page.
fn booted(bench: &Bench, config: &VmConfig) -> (Vm, Instant, u64) {
    let mut vm = Vm::build(config).unwrap();
    vm.start().unwrap();
    let started = Instant::now();
    loop {
        run(&mut vm, Duration::from_millis(200));
        // Its page is there a moment before it watches.
        if let Some(page) = find_page(&vm).filter(|page| seen(&vm, *page).turns > 3) {
            return (vm, started, page);
        }
        assert!(started.elapsed() < BOOT, "the guest does not come up:\n{}", bench.console());
    }
}

fn save_and_restore(vcpus: u8) {
    let bench = Bench::new("clocks");
    let config = VmConfig { vcpus, ..bench.config(MEM_SIZE_MIB) };
    let (mut vm, started, page) = booted(&bench, &config);
    run(&mut vm, WATCHED);
    assert!(wall_clock_error(&vm, page) < Duration::from_millis(50), "the first boot has the time");
    let uptime = Duration::from_nanos(seen(&vm, page).monotonic);
    let elapsed = started.elapsed();
    let missing = elapsed.as_secs_f64() - uptime.as_secs_f64();
    assert!((-0.05..2.0).contains(&missing), "the boot counts in the uptime: {uptime:?} of {elapsed:?}");
    vm.pause().unwrap();
    let state = serde_json::to_value(vm.save_state().unwrap()).unwrap();
    let (memory, saved) = (memory_file(&vm), seen(&vm, page));
    drop(vm);
    assert_eq!((saved.generation, saved.backwards, saved.early, saved.burst), (0, 0, 0, 1), "{saved:?}");
    std::thread::sleep(PAUSE);

    let restored_at = |state: &serde_json::Value, step_ms: i64| {
        let state: VmState = serde_json::from_value(state.clone()).unwrap();
        let memory = vmm::memory::map_private(MEM_SIZE_MIB, &memory).unwrap();
        let restore = RestoreConfig { step_ms, ..RestoreConfig::full(PathBuf::new()) };
        let config = VmConfig { restore: Some(restore), ..config.clone() };
        let mut vm = Vm::restore(&config, &state, memory).unwrap();
        // A restored VM may wait for its start.
        std::thread::sleep(Duration::from_millis(300));
        vm.start().unwrap();
        run(&mut vm, WATCHED);
        let stepped = || realtime_ns().checked_add_signed(step_ms * 1_000_000).unwrap();
        let error = wall_clock_error_to(&vm, page, stepped);
        assert!(error < Duration::from_millis(50), "the wall clock is {error:?} off");
        let seen = seen(&vm, page);
        check(&saved, &seen);
        // Again, from what was restored.
        vm.pause().unwrap();
        (seen, serde_json::to_value(vm.save_state().unwrap()).unwrap(), memory_file(&vm))
    };
    let restored = |state: &serde_json::Value| restored_at(state, 0);
    let (first, ..) = restored(&state);
    let (second, ..) = restored(&state);
    let randoms = [saved.random, first.random, second.random].concat();
    let mut different = randoms.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), randoms.len(), "{randoms:x?}");
    // Both clocks are read in turn while the guest runs, so they may be a moment apart.
    let ahead = |seen: &Seen| seen.boottime as i64 - seen.monotonic as i64;
    let pause = |seen: &Seen| ahead(seen) - ahead(&saved);
    assert!(pause(&first) >= PAUSE.as_nanos() as i64, "the pause counts in CLOCK_BOOTTIME: {first:?}");

    // The host's clock went back an hour meanwhile: no pause to be seen, and still the host's time.
    let hour_ms = 3_600_000;
    let (back, ..) = restored_at(&state, -hour_ms);
    assert!(pause(&back) < SECOND as i64, "{back:?}");
    // It went ahead by a day, or the guest was away for a day: the host cannot tell either.
    let (ahead, ..) = restored_at(&state, 24 * hour_ms);
    assert!(pause(&ahead) >= 24 * 3600 * SECOND as i64, "{ahead:?}");
}

/// A pause in place is no different from one on the disk, but for the generation of a short one.
fn paused() {
    let bench = Bench::new("clocks");
    let (mut vm, _, page) = booted(&bench, &bench.config(MEM_SIZE_MIB));
    run(&mut vm, WATCHED);
    let mut generation = 0;
    for pause in [Duration::from_millis(20), PAUSE, Duration::from_millis(1500)] {
        vm.pause().unwrap();
        let before = seen(&vm, page);
        std::thread::sleep(pause);
        vm.resume().unwrap();
        run(&mut vm, WATCHED);
        let error = wall_clock_error(&vm, page);
        assert!(error < Duration::from_millis(50), "the wall clock is {error:?} off after {pause:?}");
        let after = seen(&vm, page);
        assert_eq!((after.backwards, after.early, after.burst), (0, 0, 1), "{pause:?}: {after:?}");
        let ran = after.monotonic - before.monotonic;
        assert!(ran < 2 * WATCHED.as_nanos() as u64, "{pause:?}: {before:?} {after:?}");
        let expired = (after.expired - before.expired) as i64;
        assert!((expired - (ran / SECOND) as i64).abs() <= 1, "{pause:?}: {before:?} {after:?}");
        generation += u64::from(pause > Duration::from_secs(1));
        assert_eq!(after.generation, generation, "{pause:?}");
    }
}

fn hundred_clones() {
    const CLONES: usize = 100;
    let bench = Bench::new("clocks");
    let config = bench.config(MEM_SIZE_MIB);
    let (mut vm, _, page) = booted(&bench, &config);
    vm.pause().unwrap();
    let snapshot = bench.path("snapshot");
    vm.snapshot(&snapshot).unwrap();
    let saved = seen(&vm, page);
    drop(vm);
    let mut numbers = vec![saved.own];
    numbers.extend(saved.random);
    for clone in 0..CLONES {
        let mut vm = Vm::from_snapshot(&config, &snapshot).unwrap();
        vm.start().unwrap();
        let begin = Instant::now();
        let told = |seen: Seen| seen.generation == 1 && seen.turns > saved.turns + 3;
        while !told(seen(&vm, page)) {
            assert!(begin.elapsed() < BOOT, "clone {clone} does not go on: {:?}", seen(&vm, page));
            run(&mut vm, Duration::from_millis(10));
        }
        let seen = seen(&vm, page);
        numbers.push(seen.own);
        numbers.extend(seen.random);
    }
    assert_eq!(numbers.len(), 5 * (CLONES + 1));
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 5 * (CLONES + 1), "two drew the same");
}

/// What holds in every restored guest.
fn check(saved: &Seen, seen: &Seen) {
    assert_eq!((seen.generation, seen.awaited), (1, 1), "both ways of watching see the change: {seen:?}");
    assert_eq!((seen.backwards, seen.early), (0, 0), "nothing jumps, least before it is told: {seen:?}");
    assert!(seen.before >= saved.monotonic && seen.after >= seen.before, "{saved:?} {seen:?}");
    assert!(seen.after - seen.before < SECOND, "the monotonic clock goes on: {seen:?}");
    let ran = seen.monotonic - saved.monotonic;
    assert!(ran > WATCHED.as_nanos() as u64 / 2 && ran < WATCHED.as_nanos() as u64 * 2, "{ran}: {seen:?}");
    // One expiration a second of its own time, never two at once.
    let expired = (seen.expired - saved.expired) as i64;
    assert!((expired - (ran / SECOND) as i64).abs() <= 1, "{expired} expirations: {saved:?} {seen:?}");
    assert_eq!(seen.burst, 1, "{seen:?}");
}
