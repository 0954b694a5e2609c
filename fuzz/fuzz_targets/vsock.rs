//! See the target `vsock` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("vsock").expect("there is such a target").run)(bytes));
