//! See the target `balloon` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("balloon").expect("there is such a target").run)(bytes));
