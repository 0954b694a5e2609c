//! The layout of a small database with a rollback journal, as SQLite has one, on a disk; shared with the test that
//! cuts the power (`vmm/tests/power_cut.rs`).
//!
//! What the database holds after transaction N follows from N alone: each transaction writes page 0 and a few
//! others, and a page's words follow from its number and the transaction that wrote it last.

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Words of a page.
pub const PAGE_WORDS: u64 = PAGE_BYTES / 8;
/// Pages of the database.
pub const PAGES: usize = 64;
/// Pages that a transaction writes; one may be there twice.
pub const TOUCHED: usize = 5;
/// Where the journal's header is, one sector: magic, transaction, sum of all that follows and of the journal's pages.
pub const HEADER: u64 = 0;
/// Where the journal's pages are: what the touched pages held before.
pub const JOURNAL: u64 = 4096;
/// Where the database is.
pub const DATABASE: u64 = 64 << 10;
/// Bytes of the disk.
pub const DISK_BYTES: u64 = DATABASE + PAGES as u64 * PAGE_BYTES;
/// First word of a header that holds.
pub const MAGIC: u64 = 0x6c69_6768_7465_7221;

/// Pages that transaction `number` writes, page 0 first.
pub fn touched(number: u64) -> [usize; TOUCHED] {
    let mut pages = [0; TOUCHED];
    for (index, page) in pages.iter_mut().enumerate().skip(1) {
        *page = 1 + (mix(number, index as u64) % (PAGES as u64 - 1)) as usize;
    }
    pages
}

/// Word `index` of `page` as transaction `version` left it; 0 is how the database began.
pub fn word(page: usize, version: u64, index: u64) -> u64 {
    match index {
        0 => page as u64,
        1 => version,
        _ => mix(mix(page as u64, version), index),
    }
}

/// Who wrote each page last, once transaction `number` is done.
pub fn versions(number: u64) -> [u64; PAGES] {
    let mut versions = [0; PAGES];
    for transaction in 1..=number {
        for page in touched(transaction) {
            versions[page] = transaction;
        }
    }
    versions
}

/// One more word of a sum.
pub fn add(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

/// The sum of a header of `transaction`, and of the pages that its journal holds: what they were before.
pub fn journal_sum(transaction: u64, page_word: impl Fn(usize, u64) -> u64) -> u64 {
    let mut sum = add(MAGIC, transaction);
    for place in 0..TOUCHED {
        for index in 0..PAGE_WORDS {
            sum = add(sum, page_word(place, index));
        }
    }
    sum
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x632b_e59b_d9b4_e019);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
