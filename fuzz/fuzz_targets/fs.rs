//! See the target `fs` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("fs").expect("there is such a target").run)(bytes));
