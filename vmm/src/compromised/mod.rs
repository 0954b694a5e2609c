//! A VMM that its guest has taken over, for tests: its threads try what an intruder would try first.
//!
//! ```text
//! test: decoys ─► VMM with --attempt THREAD:NAME:WHAT ─► the thread tries, once its filter is on
//!                       └─ one line on stderr: `attempt: reached` or `attempt: stopped: why`; or the process is killed
//! ```
//!
//! Compiled with the feature `compromised` only. Every attempt is bounded and aims at what the test made.

mod attempts;

use std::sync::OnceLock;

/// What a thread says when it got what it wanted.
pub const REACHED: &str = "attempt: reached";
/// What it says when it did not; why follows.
pub const STOPPED: &str = "attempt: stopped: ";

struct Order {
    thread: String,
    name: String,
    target: String,
}

static ORDER: OnceLock<Order> = OnceLock::new();

/// Takes `THREAD:NAME:WHAT`.
pub fn order(text: &str) -> Option<()> {
    let mut words = text.splitn(3, ':').map(str::to_owned);
    let order = Order { thread: words.next()?, name: words.next()?, target: words.next()? };
    ORDER.set(order).ok()
}

/// Names of all attempts.
pub fn names() -> impl Iterator<Item = &'static str> {
    attempts::ALL.iter().map(|(name, _)| *name)
}

/// Called by each thread where a guest could have taken it over.
pub fn act(thread: &str) {
    let Some(order) = ORDER.get().filter(|order| order.thread == thread) else { return };
    let attempt = attempts::ALL.iter().find(|(name, _)| *name == order.name);
    match attempt.map(|(_, attempt)| attempt(&order.target)) {
        Some(Ok(())) => eprintln!("{REACHED}"),
        Some(Err(why)) => eprintln!("{STOPPED}{why}"),
        None => eprintln!("there is no attempt {:?}", order.name),
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(0) };
}
