//! See the target `net` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("net").expect("there is such a target").run)(bytes));
