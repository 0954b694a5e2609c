//! `/snapshot/create` and `/snapshot/load`: Firecracker's two files in place of lighter's directory.
//!
//! ```text
//! MEM.snapshot/state  ── moved ─► snapshot_path    (with the configuration as its note)
//! MEM.snapshot/memory ── moved ─► mem_file_path    (a difference is written over a base that is there)
//! ```

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use api_server::Fault;
use api_server::wire::{
    LoadHugePages, MemBackendType, SnapshotCreate, SnapshotLoad, SnapshotType, WholeConfig,
};
use devices::GuestRam;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::fault::{not_offered, refused};
use super::instance::{Guest, GuestState, Instance};
use super::resources::Resources;
use crate::clock;
use crate::config::RestoreConfig;
use crate::memory::{self, MemoryShape};
use crate::snapshot::{Base, PAGE, Snapshot};
use crate::uffd;
use crate::vm::{SaveOrder, Vm};

/// Bytes copied at once.
const CHUNK: u64 = 1 << 20;

impl Instance {
    /// Writes a snapshot of a paused VM.
    pub fn save(&mut self, create: &SnapshotCreate, guest: &mut Guest) -> Result<(), Fault> {
        let what = "Create snapshot error";
        let begin = Instant::now();
        match guest.state {
            GuestState::Paused => {}
            GuestState::Running => {
                return Err(Fault::new(format!(
                    "{what}: Cannot save the microVM state: the microVM must be paused: PATCH /vm first."
                )));
            }
            GuestState::Loaded => {
                return Err(Fault::new(format!(
                    "{what}: the microVM has not run since it was loaded: its snapshot is there already."
                )));
            }
        }
        let diff = create.snapshot_type == SnapshotType::Diff;
        let memory = absolute(&create.mem_file_path).map_err(|error| refused(what, &error))?;
        let state = absolute(&create.snapshot_path).map_err(|error| refused(what, &error))?;
        let mut directory = memory.clone().into_os_string();
        directory.push(".snapshot");
        let directory = PathBuf::from(directory);
        // Left by a process that died over it.
        let _ = std::fs::remove_dir_all(&directory);
        let note =
            serde_json::to_vec(&self.resources.config()).expect("invariant: configurations are plain data");
        let base = guest.vm.known_since().filter(|_| diff);
        let track = diff || self.resources.machine().track_dirty_pages;
        if guest.handler.is_some() && base.is_none() {
            uffd::fetch_all(guest.vm.memory());
        }
        let order = SaveOrder { directory: directory.clone(), base, track, note, files: None };
        guest.vm.snapshot_as(order).map_err(|error| refused(what, &error))?;
        let pages = Snapshot::read(&directory).map_err(|error| refused(what, &error))?.identity.base;
        let moved = move_memory(&directory.join("memory"), &memory, pages.as_ref())
            .and_then(|()| move_file(&directory.join("state"), &state));
        let _ = std::fs::remove_dir_all(&directory);
        moved.map_err(|error| refused(what, &error))?;
        self.metrics
            .took(if diff { "diff_create_snapshot" } else { "full_create_snapshot" }, begin.elapsed());
        Ok(())
    }

    /// Makes a VM of a snapshot.
    pub fn load(&mut self, load: &SnapshotLoad) -> Result<Guest, Fault> {
        let what = "Load snapshot error";
        let (begin, asked_at_ns) = (Instant::now(), clock::monotonic_ns());
        if self.resources.is_touched() {
            return Err(Fault::new(format!(
                "{what}: Loading a microVM snapshot not allowed after configuring boot-specific resources."
            )));
        }
        let (path, kind) = match (&load.mem_backend, &load.mem_file_path) {
            (Some(backend), _) => (backend.backend_path.as_str(), backend.backend_type),
            (None, path) => (path.as_deref().unwrap_or_default(), MemBackendType::File),
        };
        let state = Path::new(&load.snapshot_path);
        let failed = "Load snapshot error: Failed to restore from snapshot";
        let snapshot = Snapshot::read_state(state, state).map_err(|error| refused(failed, &error))?;
        let mut config: WholeConfig = serde_json::from_slice(&snapshot.note)
            .map_err(|error| refused(&format!("{failed}: it was not taken through this API"), &error))?;
        for other in &load.network_overrides {
            Resources::redirect(&mut config, &other.iface_id, &other.host_dev_name)?;
        }
        match (&load.vsock_override, &mut config.vsock) {
            (Some(other), Some(vsock)) => vsock.uds_path.clone_from(&other.uds_path),
            (Some(_), None) => {
                return Err(Fault::new(format!("{what}: there is no vsock device to override")));
            }
            (None, _) => {}
        }
        let mut resources = Resources::for_restore(config, self.resources.serial().clone())?;
        let mut vm_config = resources.vm_config(&self.metadata)?;
        vm_config.rare.huge_pages = match load.huge_pages {
            LoadHugePages::Snapshot => vm_config.rare.huge_pages,
            LoadHugePages::None => false,
            LoadHugePages::Hugetlbfs2M => true,
            LoadHugePages::Transparent => {
                return Err(not_offered("Memory from transparent huge pages", "set huge_pages to None"));
            }
        };
        resources.set_huge_pages(vm_config.rare.huge_pages);
        if vm_config.rare.huge_pages && kind == MemBackendType::File {
            return Err(Fault::new(format!(
                "{failed}: a file of memory cannot be mapped in huge pages: set huge_pages to None, or use the backend Uffd"
            )));
        }
        let track = load.track_dirty_pages || load.enable_diff_snapshots;
        vm_config.restore = Some(RestoreConfig { track, ..RestoreConfig::full(state.to_owned()) });
        snapshot
            .fingerprint
            .check_size(vm_config.vcpus, vm_config.memory())
            .map_err(|error| refused(failed, &error))?;
        let (memory, handler) = memory(vm_config.memory(), &snapshot, Path::new(path), kind)
            .map_err(|error| refused(failed, error.as_ref()))?;
        let mut vm =
            Vm::from_memory(&vm_config, &snapshot, memory).map_err(|error| refused(failed, &error))?;
        self.limit_calls(&mut vm);
        self.resources = resources;
        let mut guest = Guest { vm, state: GuestState::Loaded, asked_at_ns, handler };
        if load.resume_vm {
            guest
                .resume()
                .map_err(|error| refused("Load snapshot error: Failed to resume microVM", &error))?;
        }
        self.metrics.took("load_snapshot", begin.elapsed());
        Ok(guest)
    }
}

/// The guest's memory, and who gives its pages if that is another process.
fn memory(
    shape: MemoryShape,
    snapshot: &Snapshot,
    path: &Path,
    kind: MemBackendType,
) -> Result<(GuestRam, Option<uffd::Handler>), Box<dyn Error>> {
    match kind {
        MemBackendType::File => Ok((snapshot.map_file(path)?, None)),
        MemBackendType::Uffd => {
            let memory = memory::allocate(shape)?;
            let page = if shape.huge_pages { memory::HUGE_PAGE } else { PAGE };
            let handler = uffd::hand_over(&memory, path, page)?;
            Ok((memory, Some(handler)))
        }
    }
}

fn absolute(path: &str) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

/// Moves a file of memory to `to`. A difference is written over a file of the same size: its base.
fn move_memory(from: &Path, to: &Path, difference: Option<&Base>) -> io::Result<()> {
    let base = difference.and_then(|difference| {
        let file = OpenOptions::new().write(true).open(to).ok()?;
        Some((difference, file))
    });
    let source = File::open(from)?;
    match base {
        Some((difference, base)) if base.metadata()?.len() == source.metadata()?.len() => {
            let byte = |page: usize| page as u64 * PAGE as u64;
            // Pages of zeroes too: they may lie over others.
            let mut runs = difference.pages.iter().map(|run| run.range());
            runs.try_for_each(|run| copy_range(&source, &base, byte(run.start)..byte(run.end)))
        }
        _ => move_file(from, to),
    }
}

/// Gives `from` the name `to`, or copies it where that is another file system.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let (source, target) = (File::open(from)?, File::create(to)?);
            target.set_len(source.metadata()?.len())?;
            copy_data(&source, &target)
        }
        result => result,
    }
}

/// Copies what is no hole.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut end = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start..end)?;
    }
}

/// Copies the bytes of `range` to where they are.
fn copy_range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        let (mut offset_in, mut offset_out) = (start, start);
        let len = (range.end - start).min(CHUNK) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut offset_in), to, Some(&mut offset_out), len)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => start += count as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::snapshot::{PageSet, SnapshotId};

    #[test]
    fn a_difference_is_written_over_its_base_and_a_full_one_replaces_it() {
        let base = tempfile::tempdir().unwrap();
        let (from, to) = (base.path().join("from"), base.path().join("to"));
        let write = |path: &Path, pages: &[(u64, u8)]| {
            let file = File::create(path).unwrap();
            file.set_len(1 << 20).unwrap();
            for (page, value) in pages {
                file.write_all_at(&[*value; 4096], page * 4096).unwrap();
            }
        };
        let read = |page: u64| {
            let mut byte = [0];
            File::open(&to).unwrap().read_exact_at(&mut byte, page * 4096).unwrap();
            byte[0]
        };
        write(&to, &[(0, 1), (200, 2)]);
        // Page 0 was written, with zeroes.
        let mut pages = PageSet::new(256);
        for page in [0, 200, 255] {
            pages.insert(page..page + 1).unwrap();
        }
        let difference = Base::new(SnapshotId::draw().unwrap(), &pages).unwrap();
        write(&from, &[(100, 9), (200, 3), (255, 4)]);
        move_memory(&from, &to, Some(&difference)).unwrap();
        assert_eq!([read(0), read(100), read(200), read(255)], [0, 0, 3, 4]);
        write(&from, &[(1, 5)]);
        move_memory(&from, &to, None).unwrap();
        assert_eq!([read(0), read(1), read(255)], [0, 5, 0]);
        assert!(!from.exists());
    }
}
