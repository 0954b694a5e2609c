//! See the target `rng` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("rng").expect("there is such a target").run)(bytes));
