//! See the target `detour` in `fuzz/hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (hostile::target("detour").expect("there is such a target").run)(bytes));
