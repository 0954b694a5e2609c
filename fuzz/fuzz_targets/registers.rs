//! See the target `registers` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("registers").expect("there is such a target").run)(bytes));
