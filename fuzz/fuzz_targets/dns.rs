//! See the target `dns` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("dns").expect("there is such a target").run)(bytes));
