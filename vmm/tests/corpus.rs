//! The fuzz target's corpus, and some thousand changes of it, on the stable toolchain.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/hostile.rs"]
mod hostile;

use std::path::{Path, PathBuf};

/// Changes of each file.
const CHANGES: u64 = 2000;

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/snapshot");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn every_file_of_the_corpus_is_read_or_refused() {
    let files = corpus();
    assert!(files.len() > 3, "{}", files.len());
    for (path, bytes) in files {
        println!("{}", path.display());
        hostile::read(&bytes);
    }
}

#[test]
fn changed_files_with_right_checksums_are_read_or_refused() {
    // A fixed sequence: a failure comes again.
    let mut random = 1_u64;
    let mut draw = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below.max(1)
    };
    for (_, bytes) in corpus() {
        let Some(bodies) = hostile::bodies(&bytes) else { continue };
        for _ in 0..CHANGES {
            let mut changed = bodies.clone();
            let body = &mut changed[draw(4)];
            for _ in 0..=draw(4) {
                let at = draw(body.len());
                match draw(4) {
                    0 => body.truncate(at),
                    1 => body.insert(at.min(body.len()), draw(256) as u8),
                    _ => body
                        .get_mut(at)
                        .into_iter()
                        .for_each(|byte| *byte = [0xff, 0x80, 0, 1, 0x7f][draw(5)]),
                }
            }
            hostile::read(&hostile::sealed(changed));
        }
    }
}
