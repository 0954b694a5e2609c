//! What a snapshot from anybody goes through before KVM sees it. Nothing in it may panic, hang or fill memory.
//! Shared by the fuzz target `snapshot` (`fuzz/hostile`) and by `vmm/tests/corpus.rs`.

use std::path::Path;

use vmm::snapshot::{Envelope, Section, Snapshot, seal};

/// The sections of a whole state file.
const SECTIONS: [Section; 4] = [Section::Fingerprint, Section::Vm, Section::Times, Section::Identity];
/// Guests of at most this size get memory for their pages to be loaded.
const MAX_MEMORY_MIB: u32 = 256;

/// Reads `bytes` as a state file; then their sections behind checksums that are right, cut where the first
/// byte of each says if `bytes` are no state file at all.
pub fn read(bytes: &[u8]) {
    take(bytes);
    if let Ok(envelope) = Envelope::parse(bytes) {
        let bodies = SECTIONS.map(|section| envelope.section(section).unwrap_or_default().to_vec());
        take(&sealed(bodies));
    } else {
        let mut rest = bytes;
        take(&sealed(SECTIONS.map(|_| {
            let len = rest.first().map_or(0, |first| (usize::from(*first) * 64).min(rest.len()));
            let (body, after) = rest.split_at(len);
            rest = after;
            body.to_vec()
        })));
    }
}

/// The state file with these sections.
pub fn sealed(bodies: [Vec<u8>; 4]) -> Vec<u8> {
    seal(&SECTIONS.into_iter().zip(bodies).collect::<Vec<_>>())
}

/// The bodies of the sections of a good file.
#[allow(dead_code, reason = "not for the fuzz target")]
pub fn bodies(bytes: &[u8]) -> Option<[Vec<u8>; 4]> {
    let envelope = Envelope::parse(bytes).ok()?;
    Some(SECTIONS.map(|section| envelope.section(section).unwrap_or_default().to_vec()))
}

fn take(bytes: &[u8]) {
    let Ok(snapshot) = Snapshot::parse(Path::new("/nowhere"), bytes) else { return };
    let print = &snapshot.fingerprint;
    // Words of a machine that differs in everything.
    let _ = print.check_size(1, 1.into()).map_err(|error| error.to_string());
    let _ = print.check(print);
    let _ = serde_json::to_string(&snapshot.state);
    if let Some(base) =
        snapshot.identity.base.as_ref().filter(|_| print.memory().bytes() >> 20 <= u64::from(MAX_MEMORY_MIB))
        && let Ok(memory) = vmm::memory::allocate(print.memory())
    {
        let file = std::fs::File::open("/dev/null").expect("there is /dev/null");
        let _ = base.load(&memory, &file).map_err(|error| error.to_string());
    }
}
