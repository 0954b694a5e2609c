//! Snapshots of a whole VM: a directory with `state` and `memory`. `docs/snapshot-format.md` has the format.
//!
//! ```text
//! save:    memory ─► DIR.partial/memory    state ─► DIR.partial/state    rename ─► DIR
//! restore: DIR/state checked against the machine, DIR/memory mapped privately
//! ```
//!
//! Disks are not part of it: whoever takes the snapshot copies them while the VM is paused.

mod envelope;
mod fingerprint;
mod memory_file;

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use devices::GuestRam;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::envelope::{Envelope, EnvelopeError, FORMAT_VERSION, Section};
pub use self::fingerprint::{Fingerprint, Mismatch, cpuid};
use crate::memory::{self, MemoryError};
use crate::vm::VmState;

/// Largest state file that is read: 32 vCPUs and 16 devices need far less. Stops a file from filling memory.
const MAX_STATE_BYTES: u64 = 16 << 20;

/// When a VM was paused, by the host's clocks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Times {
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// A snapshot that could not be taken. What it wrote is removed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The state could not be encoded: a bug of ours.
    #[error("cannot encode the state")]
    Encode(#[from] postcard::Error),
}

/// A snapshot that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The state file is too large to be one.
    #[error("{} has more than {MAX_STATE_BYTES} bytes: it is no state of a VM", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The state file is none, or damaged.
    #[error("cannot use {}: {source}", path.display())]
    Envelope {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
    /// A section does not decode.
    #[error("cannot use {}: its {section:?} section makes no sense", path.display())]
    Section {
        /// The file.
        path: PathBuf,
        /// Which one.
        section: Section,
        /// Why.
        source: postcard::Error,
    },
    /// The memory file has another size than the machine's memory.
    #[error("{} has {found} bytes; memory of {wanted} belongs to this snapshot", path.display())]
    MemorySize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The machine's memory in bytes.
        wanted: u64,
    },
    /// The memory file cannot be mapped.
    #[error(transparent)]
    Map(#[from] MemoryError),
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of memory that are not holes.
    pub memory_bytes: u64,
}

/// A snapshot on its way back into a VM.
pub struct Snapshot {
    /// The machine that it is of.
    pub fingerprint: Fingerprint,
    /// Its state.
    pub state: VmState,
    /// When it was paused.
    pub times: Times,
    directory: PathBuf,
}

/// Writes a snapshot to the new directory `directory`, all or nothing.
pub fn write(
    directory: &Path,
    memory: &GuestRam,
    fingerprint: &Fingerprint,
    state: &VmState,
    times: Times,
) -> Result<Written, WriteError> {
    let partial = partial_name(directory);
    let result = write_files(&partial, memory, fingerprint, state, times)
        .and_then(|written| publish(&partial, directory).map(|()| written));
    if result.is_err() {
        // The error being returned matters more.
        let _ = std::fs::remove_dir_all(&partial);
    }
    result
}

fn write_files(
    partial: &Path,
    memory: &GuestRam,
    fingerprint: &Fingerprint,
    state: &VmState,
    times: Times,
) -> Result<Written, WriteError> {
    if partial.exists() {
        // Somebody died over it.
        std::fs::remove_dir_all(partial).map_err(failed("remove", partial))?;
    }
    DirBuilder::new().mode(0o700).create(partial).map_err(failed("make", partial))?;
    let path = partial.join("memory");
    let file = File::create_new(&path).map_err(failed("make", &path))?;
    let memory_bytes = memory_file::write(memory, &file).map_err(failed("write", &path))?;
    let path = partial.join("state");
    let bytes = envelope::write(&[
        (Section::Fingerprint, postcard::to_allocvec(fingerprint)?),
        (Section::Vm, postcard::to_allocvec(state)?),
        (Section::Times, postcard::to_allocvec(&times)?),
    ]);
    let mut file = File::create_new(&path).map_err(failed("make", &path))?;
    file.write_all(&bytes).map_err(failed("write", &path))?;
    Ok(Written { memory_bytes })
}

fn publish(partial: &Path, directory: &Path) -> Result<(), WriteError> {
    std::fs::rename(partial, directory).map_err(failed("make", directory))
}

/// `directory` with `.partial` after its name.
fn partial_name(directory: &Path) -> PathBuf {
    let mut name = OsString::from(directory);
    name.push(".partial");
    name.into()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError::File { action, path, source }
}

impl Snapshot {
    /// Reads the snapshot in `directory`, but for its memory.
    pub fn read(directory: &Path) -> Result<Self, ReadError> {
        let path = directory.join("state");
        let file = |source| ReadError::File { path: path.clone(), source };
        let mut bytes = Vec::new();
        File::open(&path).map_err(file)?.take(MAX_STATE_BYTES + 1).read_to_end(&mut bytes).map_err(file)?;
        if bytes.len() as u64 > MAX_STATE_BYTES {
            return Err(ReadError::TooLarge { path });
        }
        let damaged = |source| ReadError::Envelope { path: path.clone(), source };
        let envelope = Envelope::parse(&bytes).map_err(damaged)?;
        let section = |section| envelope.section(section).map(|body| (section, body)).map_err(damaged);
        Ok(Snapshot {
            fingerprint: decode(&path, section(Section::Fingerprint)?)?,
            state: decode(&path, section(Section::Vm)?)?,
            times: decode(&path, section(Section::Times)?)?,
            directory: directory.to_owned(),
        })
    }

    /// Its memory, mapped privately: pages that the VM does not write are shared with all its clones.
    pub fn map_memory(&self) -> Result<GuestRam, ReadError> {
        let path = self.directory.join("memory");
        let open = || -> io::Result<(File, u64)> {
            let file = File::open(&path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        let (file, found) = open().map_err(|source| ReadError::File { path: path.clone(), source })?;
        let wanted = u64::from(self.fingerprint.mem_size_mib) << 20;
        if found != wanted {
            return Err(ReadError::MemorySize { path, found, wanted });
        }
        Ok(memory::map_private(self.fingerprint.mem_size_mib, &file)?)
    }
}

fn decode<T: DeserializeOwned>(path: &Path, (section, body): (Section, &[u8])) -> Result<T, ReadError> {
    postcard::from_bytes(body).map_err(|source| ReadError::Section { path: path.to_owned(), section, source })
}
