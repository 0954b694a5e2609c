//! See the target `snapshot` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("snapshot").expect("there is such a target").run)(bytes));
