//! A Linux guest that is saved and restored twice: both get a new identity and the right time, before any of
//! their programs runs. The guest is `tests/guest/clocks.rs` as PID 1 of our kernel.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::linux::{self, Bench};
use support::memory_file;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::config::VmConfig;
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
}

/// What the guest shows at `page`.
fn seen(vm: &Vm, page: u64) -> Seen {
    let words: [u64; 17] = support::words(vm, page);
    let [_, monotonic, realtime, boottime, generation, awaited, backwards, rest @ ..] = words;
    let [early, before, after, expired, burst, r0, r1, r2, r3, turns] = rest;
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
    let error = || {
        let (turns, before) = (seen(vm, page).turns, realtime_ns());
        let patience = Instant::now() + WATCHED;
        while seen(vm, page).turns < turns + 2 && Instant::now() < patience {
            std::thread::yield_now();
        }
        let (guest, after) = (seen(vm, page).realtime, realtime_ns());
        before.saturating_sub(guest).max(guest.saturating_sub(after))
    };
    // The guest may lose its processor while it is looked at: the best of some readings counts.
    Duration::from_nanos((0..5).map(|_| error()).min().unwrap())
}

fn save_and_restore(vcpus: u8) {
    let bench = Bench::new("clocks");
    let config = VmConfig { vcpus, ..bench.config(MEM_SIZE_MIB) };
    let mut vm = Vm::build(&config).unwrap();
    vm.start().unwrap();
    let started = Instant::now();
    let page = loop {
        run(&mut vm, Duration::from_millis(200));
        if let Some(page) = find_page(&vm) {
            break page;
        }
        assert!(started.elapsed() < BOOT, "the guest does not come up:\n{}", bench.console());
    };
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

    let restored = |state: &serde_json::Value| {
        let state: VmState = serde_json::from_value(state.clone()).unwrap();
        let memory = vmm::memory::map_private(MEM_SIZE_MIB, &memory).unwrap();
        let mut vm = Vm::restore(&config, &state, memory).unwrap();
        // A restored VM may wait for its start.
        std::thread::sleep(Duration::from_millis(300));
        vm.start().unwrap();
        run(&mut vm, WATCHED);
        let error = wall_clock_error(&vm, page);
        assert!(error < Duration::from_millis(50), "the wall clock is {error:?} off");
        let seen = seen(&vm, page);
        check(&saved, &seen);
        // Again, from what was restored.
        vm.pause().unwrap();
        (seen, serde_json::to_value(vm.save_state().unwrap()).unwrap(), memory_file(&vm))
    };
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
    let mut later = state.clone();
    later["saved_at_ns"] = (state["saved_at_ns"].as_u64().unwrap() + 3600 * SECOND).into();
    let (stepped, ..) = restored(&later);
    assert!(pause(&stepped) < SECOND as i64, "{stepped:?}");
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
