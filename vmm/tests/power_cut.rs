//! Data is never lost: two hundred power cuts under a database's writer, and none of what it acknowledged is gone.
//!
//! A cut is SIGKILL for the VMM and, at the same moment, the loss of what its disk had not been told to keep
//! (`support/volatile_disk.rs`). The writer is the micro-guest, which runs natively in ring 3
//! (`xtask/micro_guest/writer.rs`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../xtask/micro_guest/ledger.rs"]
mod ledger;
mod support;

use std::time::Duration;

use ledger::{DATABASE, DISK_BYTES, HEADER, JOURNAL, MAGIC, PAGE_BYTES, PAGE_WORDS, PAGES};
use support::micro::Micro;
use support::volatile_disk::VolatileDisk;

fn main() -> std::process::ExitCode {
    let tests: Vec<(&'static str, fn())> = vec![
        (
            "no_acknowledged_transaction_is_lost_in_two_hundred_power_cuts",
            no_acknowledged_transaction_is_lost_in_two_hundred_power_cuts,
        ),
        (
            "writes_of_a_driver_that_never_flushes_are_durable_one_by_one",
            writes_of_a_driver_that_never_flushes_are_durable_one_by_one,
        ),
        (
            "a_writer_that_leaves_out_its_flushes_does_lose_transactions",
            a_writer_that_leaves_out_its_flushes_does_lose_transactions,
        ),
    ];
    support::main_lacking(tests, VolatileDisk::open(vec![0; 512]).err())
}

/// Transactions that a writer commits at most before its power is cut ...
const MOST_COMMITS: u64 = 4;
/// ... and longest time after that.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// What one series of cuts came to.
#[derive(Debug, Default)]
struct Outcome {
    cuts: u32,
    transactions: u64,
    /// Sectors that were written and not flushed.
    lost_sectors: usize,
    rolled_back: u32,
    /// Cuts after which an acknowledged transaction was missing or the database damaged.
    damaged: u32,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Lets the writer run and cuts its power, again and again on the same disk.
fn cut_often(cuts: u32, engine: &str, words: &str) -> Outcome {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut outcome = Outcome::default();
    let mut content = image(0);
    let mut number = 0;
    for cut in 0..cuts {
        let disk = VolatileDisk::open(content).unwrap();
        let config = serde_json::json!({
            "disks": [{ "path": disk.path(), "read_only": false, "serial": "", "engine": engine }],
        });
        let mut guest = Micro::start(&format!("micro.test=write micro.from={number} {words}"), &config);
        let mut said = guest.wait_for("ready\n");
        let commits = random.below(MOST_COMMITS) as usize;
        while said.matches("ack").count() < commits {
            let more = guest.read();
            assert!(!more.is_empty(), "the writer ended: {said}{}", guest.log());
            said.push_str(&more);
        }
        std::thread::sleep(Duration::from_micros(random.below(LONGEST_WAIT.as_micros() as u64)));
        // Nothing, all or any half of the cache makes it.
        let luck = random.below(4);
        outcome.lost_sectors += disk.cut(|| match luck {
            0 => false,
            1 => true,
            _ => random.below(2) == 0,
        });
        said.push_str(&guest.kill());
        let acknowledged = said.lines().filter_map(|line| line.strip_prefix("ack n=")?.parse().ok()).max();
        let acknowledged: u64 = acknowledged.unwrap_or(number);
        content = disk.content();
        outcome.cuts += 1;
        outcome.rolled_back += u32::from(roll_back(&mut content));
        let found = word(&content, DATABASE + 8);
        let is_whole = content[DATABASE as usize..] == image(found.min(1 << 24))[DATABASE as usize..];
        if found < acknowledged || found > acknowledged + 1 || !is_whole {
            outcome.damaged += 1;
            println!("cut {cut}: {acknowledged} acknowledged, {found} found, whole: {is_whole}");
            content = image(acknowledged);
        }
        number = word(&content, DATABASE + 8);
    }
    outcome.transactions = number;
    println!("{engine}, {words}: {outcome:?}");
    outcome
}

/// A disk on which transaction `number` was the last.
fn image(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES as usize];
    for (page, version) in (0..PAGES).zip(ledger::versions(number)) {
        for index in 0..PAGE_WORDS {
            let at = (DATABASE + page as u64 * PAGE_BYTES + index * 8) as usize;
            bytes[at..at + 8].copy_from_slice(&ledger::word(page, version, index).to_le_bytes());
        }
    }
    bytes
}

/// What a database does when it is opened: a journal that is whole is undone. True if there was one.
fn roll_back(content: &mut [u8]) -> bool {
    let transaction = word(content, HEADER + 8);
    let old = |place: usize, index| word(content, JOURNAL + place as u64 * PAGE_BYTES + index * 8);
    if word(content, HEADER) != MAGIC || word(content, HEADER + 16) != ledger::journal_sum(transaction, old) {
        return false;
    }
    for (place, page) in ledger::touched(transaction).into_iter().enumerate() {
        let from = (JOURNAL + place as u64 * PAGE_BYTES) as usize;
        content.copy_within(from..from + PAGE_BYTES as usize, (DATABASE + page as u64 * PAGE_BYTES) as usize);
    }
    true
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
}

fn no_acknowledged_transaction_is_lost_in_two_hundred_power_cuts() {
    for engine in ["io_uring", "sync"] {
        let outcome = cut_often(100, engine, "micro.flush=1 micro.feature=1");
        assert_eq!((outcome.cuts, outcome.damaged), (100, 0), "{engine}: {outcome:?}");
        // The cuts met the writer at work: something was under way, and transactions were undone.
        assert!(outcome.transactions > 100, "{outcome:?}");
        assert!(outcome.lost_sectors > 50 && outcome.rolled_back > 5, "{outcome:?}");
    }
}

fn writes_of_a_driver_that_never_flushes_are_durable_one_by_one() {
    let outcome = cut_often(10, "io_uring", "micro.flush=0 micro.feature=0");
    assert_eq!(outcome.damaged, 0, "{outcome:?}");
    assert!(outcome.transactions > 10, "{outcome:?}");
}

/// The disk does lose what is not flushed: else the tests above would say nothing.
fn a_writer_that_leaves_out_its_flushes_does_lose_transactions() {
    let outcome = cut_often(16, "io_uring", "micro.flush=0 micro.feature=1");
    assert!(outcome.damaged > 1, "{outcome:?}");
}
