//! See the target `block` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("block").expect("there is such a target").run)(bytes));
