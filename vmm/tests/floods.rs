//! Guests that want to keep their host busy: each costs what one of its processors may cost, and stays small.
//!
//! The floods are the micro-guest's (`xtask/micro_guest/flood.rs`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::time::{Duration, Instant};

use support::micro::Micro;

kvm_tests!(
    a_flooded_console_costs_one_processor_and_no_memory,
    exits_cost_the_processor_that_makes_them_and_no_more,
    notifications_cost_one_more_thread_and_no_more,
    packets_for_nobody_take_no_memory,
);

/// How long a flood is watched.
const WATCHED: Duration = Duration::from_secs(2);
/// Limit of a console log, in bytes, which takes a guest minutes to reach (its own test is in `devices`).
const MAX_CONSOLE_LOG: u64 = (16 << 20) + 4096;

fn words(kind: &str) -> String {
    format!("micro.test=flood micro.kind={kind}")
}

/// Processors that the VMM kept busy while it was watched.
fn processors(guest: &Micro) -> f64 {
    let (begin, before) = (Instant::now(), guest.cpu_time());
    std::thread::sleep(WATCHED);
    (guest.cpu_time() - before).as_secs_f64() / begin.elapsed().as_secs_f64()
}

fn a_flooded_console_costs_one_processor_and_no_memory() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let guest = Micro::start(&words("console"), &serde_json::json!({ "console_log": log.path() }));
    let end = Instant::now() + support::PATIENCE;
    let len = || log.as_file().metadata().unwrap().len();
    while len() == 0 {
        assert!(Instant::now() < end, "nothing is written");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (young, before) = (guest.memory_kib(), len());
    let (busy, old) = (processors(&guest), guest.memory_kib());
    assert!(busy < 1.1 && old <= young + 256, "{busy} processors are busy, {young} KiB, then {old} KiB");
    assert!(len() > before && len() <= MAX_CONSOLE_LOG, "{before} bytes, then {}", len());
    assert_eq!(guest.log(), "");
}

fn exits_cost_the_processor_that_makes_them_and_no_more() {
    let mut guest = Micro::start(&words("exits"), &serde_json::json!({}));
    guest.wait_for("ready\n");
    let busy = processors(&guest);
    assert!(busy < 1.1, "{busy} processors are busy");
    assert_eq!(guest.log(), "");
}

fn notifications_cost_one_more_thread_and_no_more() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let config = serde_json::json!({ "disks": [{ "path": disk.path(), "read_only": false, "serial": "" }] });
    let mut guest = Micro::start(&words("notifications"), &config);
    guest.wait_for("ready\n");
    let (busy, threads) = (processors(&guest), guest.threads());
    assert!(busy < 2.1 && threads < 8, "{busy} processors are busy, {threads} threads");
    assert_eq!(guest.log(), "");
}

fn packets_for_nobody_take_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let vsock = serde_json::json!({ "guest_cid": 42, "uds_path": directory.path().join("v") });
    let mut guest = Micro::start(&words("packets"), &serde_json::json!({ "vsock": vsock }));
    guest.wait_for("ready\n");
    let young = guest.memory_kib();
    let busy = processors(&guest);
    let old = guest.memory_kib();
    assert!(busy < 2.1, "{busy} processors are busy");
    assert!(old <= young + 1024, "{young} KiB, then {old} KiB");
    assert!(guest.log().len() < 4096, "{}", guest.log());
}
