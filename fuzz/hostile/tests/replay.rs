//! Every corpus, then changes of it for a few seconds: LIGHTER_FUZZ_SECONDS for each target, 2 without it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use hostile::mutate::Mutator;
use hostile::{TARGETS, Target};

/// No input may take longer, on a loaded host and in a debug build.
const LONGEST: Duration = Duration::from_secs(10);

/// The committed inputs of `target`, in the order of their names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target.name);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Gives `input` to `target`; what it fails at stays in a file for `fuzz/corpus`.
fn feed(target: &Target, input: &[u8]) {
    let begin = Instant::now();
    if let Err(panic) = catch_unwind(|| (target.run)(input)) {
        let file = std::env::temp_dir().join(format!("lighter-fuzz-{}-{}", target.name, short_name(input)));
        std::fs::write(&file, input).unwrap();
        eprintln!("{} fails at {}", target.name, file.display());
        std::panic::resume_unwind(panic);
    }
    let took = begin.elapsed();
    assert!(took < LONGEST, "{}: {took:?} for {} bytes", target.name, input.len());
}

/// A short name for an input.
fn short_name(input: &[u8]) -> String {
    input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        .to_string()
}

fn run(name: &str) {
    let target = hostile::target(name).unwrap();
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    for input in &inputs {
        feed(target, input);
    }
    let seconds = std::env::var("LIGHTER_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (begin, mut mutator, mut count) = (Instant::now(), Mutator::new(0x9e37_79b9_7f4a_7c15), 0_u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        feed(target, &mutator.draw(&inputs, target.max_len));
        count += 1;
    }
    println!("{name}: {} inputs of the corpus, {count} changes of them", inputs.len());
}

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+

        #[test]
        fn every_target_is_replayed() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),+]);
        }
    };
}

targets!(
    block, net, vsock, rng, balloon, mem, pmem, fs, registers, stream, detour, dns, egress, agent, snapshot,
    manifest, layer, api, kernel, config,
);
