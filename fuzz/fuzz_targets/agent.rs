//! See the target `agent` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("agent").expect("there is such a target").run)(bytes));
