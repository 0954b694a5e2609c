//! See the target `egress` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("egress").expect("there is such a target").run)(bytes));
