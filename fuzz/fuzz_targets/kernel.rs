//! See the target `kernel` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("kernel").expect("there is such a target").run)(bytes));
