//! See the target `config` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("config").expect("there is such a target").run)(bytes));
