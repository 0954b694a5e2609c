//! See the target `pmem` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("pmem").expect("there is such a target").run)(bytes));
