//! See the target `mem` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("mem").expect("there is such a target").run)(bytes));
