//! See the target `api` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("api").expect("there is such a target").run)(bytes));
