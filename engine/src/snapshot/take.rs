//! Saving a running container.

use std::time::{Duration, Instant};

use vmm::control::{Client, Request as VmmRequest};

use super::store::Draft;
use super::{DISK, MACHINE, Manifest, ROOTFS, SCHEMA, SnapshotError, file, link};
use crate::container::record::{Record, write_json};
use crate::container::state::now_ns;
use crate::isolation::vm_only;
use crate::keeper::client;
use crate::keeper::protocol::Request;
use crate::run::machine::AGENT_DISK;
use crate::template::copy_sparse;
use crate::volumes::{MountKind, MountSpec};

/// What writing a machine's memory may take.
const SAVE_TIMEOUT: Duration = Duration::from_secs(600);

/// What was saved.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// How long the container stood still.
    pub paused: Duration,
    /// Bytes of memory that were written.
    pub memory_bytes: u64,
}

/// Saves the running container `record` to `draft`. It goes on, whatever happens here: its keeper lets it go when
/// this process ends.
pub fn take(record: &Record, draft: &Draft) -> Result<Taken, SnapshotError> {
    vm_only(&record.spec, &record.name, "a snapshot")?;
    if record.spec.mounts.iter().any(MountSpec::is_outside) {
        return Err(SnapshotError::Shares(record.name.clone()));
    }
    if record.spec.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Secrets { .. })) {
        return Err(SnapshotError::Secrets(record.name.clone()));
    }
    let directory = draft.directory();
    let disk = record.data.join(DISK);
    // Before anything stands still.
    link(&record.data.join(&record.spec.rootfs), &directory.join(ROOTFS))?;
    link(&record.data.join(AGENT_DISK), &directory.join(AGENT_DISK))?;
    let mut keeper = client::connect(record)?;
    client::ask_over(record, &mut keeper, &Request::Hold)?;
    let mut vmm = Client::connect(&record.control(), SAVE_TIMEOUT)?;
    let done = vmm.ask(&VmmRequest::Snapshot {
        dir: directory.join(MACHINE),
        base: None,
        track: false,
        stay_paused: true,
    })?;
    let standing = Instant::now();
    if disk.exists() {
        copy_sparse(&disk, &directory.join(DISK)).map_err(file("copy", &disk))?;
    }
    client::ask_over(record, &mut keeper, &Request::Release)?;
    let paused = Duration::from_micros(done.paused_us.unwrap_or_default()) + standing.elapsed();
    let manifest = Manifest {
        schema: SCHEMA.to_owned(),
        created_ns: now_ns(),
        container: record.name.clone(),
        paused_us: paused.as_micros() as u64,
        spec: record.spec.clone(),
    };
    let path = directory.join(Manifest::FILE);
    write_json(&path, &manifest).map_err(file("write", &path))?;
    Ok(Taken { paused, memory_bytes: done.memory_bytes.unwrap_or_default() })
}
