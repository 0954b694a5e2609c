//! The state file of a snapshot: see `vmm/tests/support/hostile.rs`.
#![no_main]

#[path = "../../vmm/tests/support/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::read(bytes));
