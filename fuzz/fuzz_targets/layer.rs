//! See the target `layer` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("layer").expect("there is such a target").run)(bytes));
