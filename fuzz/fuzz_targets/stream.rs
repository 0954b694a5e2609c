//! See the target `stream` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("stream").expect("there is such a target").run)(bytes));
