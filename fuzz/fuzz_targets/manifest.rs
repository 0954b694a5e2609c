//! See the target `manifest` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("manifest").expect("there is such a target").run)(bytes));
