//! Snapshots of a whole VM: a directory with `state` and `memory`. `docs/snapshot-format.md` has the format.
//!
//! ```text
//! save:    memory ─► DIR.partial/memory    state ─► DIR.partial/state    rename ─► DIR
//! restore: DIR/state checked against the machine, DIR/memory mapped privately
//!          differential: the full base's memory mapped, then the pages of each difference read over it
//! ```
//!
//! Disks are not part of it: whoever takes the snapshot copies them while the VM is paused.

mod envelope;
mod fingerprint;
mod identity;
mod memory_file;
mod pages;

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use devices::{GuestRam, held};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::envelope::{Envelope, EnvelopeError, FORMAT_VERSION, Section, write as seal};
pub use self::fingerprint::{Fingerprint, Mismatch, cpuid};
pub use self::identity::{Base, Identity, PageRun, SnapshotId};
pub use self::memory_file::{Copied, prepare};
pub use self::pages::{PAGE, PageSet};
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
    /// The host gave no random number.
    #[error("cannot draw a number for the snapshot")]
    Random(#[from] getrandom::Error),
    /// The pages of a difference are too scattered to be listed.
    #[error("too many separate pages were written since the base: take a full snapshot")]
    Scattered,
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
    /// A base is not given, or another one is.
    #[error("{} is a difference from snapshot {wanted}, {}", path.display(), given(found))]
    Base {
        /// The difference.
        path: PathBuf,
        /// What it is a difference from.
        wanted: SnapshotId,
        /// What was given in its place.
        found: Option<(PathBuf, SnapshotId)>,
    },
    /// There are more bases than differences.
    #[error("{} is a full snapshot: {} cannot be its base", path.display(), base.display())]
    TooManyBases {
        /// The full one.
        path: PathBuf,
        /// The first one too many.
        base: PathBuf,
    },
    /// A difference and its base are of different machines.
    #[error("{} cannot be the base", path.display())]
    BaseMachine {
        /// The base.
        path: PathBuf,
        /// Why.
        source: Mismatch,
    },
}

fn given(found: &Option<(PathBuf, SnapshotId)>) -> String {
    match found {
        Some((path, id)) => format!("{} is snapshot {id}", path.display()),
        None => "which must be given too".to_owned(),
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of memory, those counted twice that changed while they were written.
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
    /// Its place in a chain.
    pub identity: Identity,
    /// What whoever took it wanted to find in it again; empty if that is nothing.
    pub note: Vec<u8>,
    directory: PathBuf,
}

/// A snapshot being written, under a name of its own. Dropped before [`Writer::publish`] it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    partial: PathBuf,
    memory: File,
    /// Its state file too was given by whoever asked, who names the snapshot when it is done.
    given: Option<File>,
}

/// All of a snapshot but its memory.
pub struct Description<'a> {
    /// The machine.
    pub fingerprint: &'a Fingerprint,
    /// Its state.
    pub state: &'a VmState,
    /// When it was paused.
    pub times: Times,
    /// Its place in a chain.
    pub identity: &'a Identity,
    /// What whoever takes it wants to find in it again.
    pub note: &'a [u8],
}

impl Writer {
    /// Begins the snapshot `directory`, which must not be there.
    pub fn create(directory: &Path) -> Result<Self, WriteError> {
        let partial = partial_name(directory);
        if partial.exists() {
            // Somebody died over it.
            std::fs::remove_dir_all(&partial).map_err(failed("remove", &partial))?;
        }
        DirBuilder::new().mode(0o700).create(&partial).map_err(failed("make", &partial))?;
        let path = partial.join("memory");
        let memory = File::create_new(&path).map_err(failed("make", &path))?;
        Ok(Writer { directory: directory.to_owned(), partial, memory, given: None })
    }

    /// Begins the snapshot `directory` in two empty files of it.
    pub fn into_files(directory: &Path, [memory, state]: [File; 2]) -> Self {
        let partial = partial_name(directory);
        Writer { directory: directory.to_owned(), partial, memory, given: Some(state) }
    }

    /// Makes the files of the snapshot `directory` for another process to write: memory and state. To be named with
    /// [`Writer::name`] then.
    pub fn for_other(directory: &Path) -> Result<(Self, File), WriteError> {
        let writer = Self::create(directory)?;
        let path = writer.partial.join("state");
        let state = File::create_new(&path).map_err(failed("make", &path))?;
        Ok((writer, state))
    }

    /// Its memory file.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Gives the snapshot its name.
    pub fn name(&self) -> Result<(), WriteError> {
        std::fs::rename(&self.partial, &self.directory).map_err(failed("make", &self.directory))
    }

    /// Writes what `memory` holds and is not zero; gives the bytes.
    pub fn write_all(&self, memory: &GuestRam) -> Result<u64, WriteError> {
        memory_file::write(memory, &self.memory).map_err(self.write_failed())
    }

    /// Writes some pages of `memory` over what is there; gives the bytes.
    pub fn write_pages(&self, memory: &GuestRam, pages: &PageSet) -> Result<u64, WriteError> {
        memory_file::write_pages(memory, pages, &self.memory).map_err(self.write_failed())
    }

    /// Writes pages that were copied before; gives the bytes.
    pub fn write_copied(&self, copied: &Copied) -> Result<u64, WriteError> {
        copied.write(&self.memory).map_err(self.write_failed())
    }

    /// Writes the rest and gives the snapshot its name.
    pub fn publish(&self, description: &Description<'_>) -> Result<(), WriteError> {
        let len = description.fingerprint.memory().bytes();
        self.memory.set_len(len).map_err(self.write_failed())?;
        let path = self.partial.join("state");
        let mut sections = vec![
            (Section::Fingerprint, postcard::to_allocvec(description.fingerprint)?),
            (Section::Vm, postcard::to_allocvec(description.state)?),
            (Section::Times, postcard::to_allocvec(&description.times)?),
            (Section::Identity, postcard::to_allocvec(description.identity)?),
        ];
        if !description.note.is_empty() {
            sections.push((Section::Note, description.note.to_vec()));
        }
        let hotplug_mib = description.fingerprint.hotplug_mib;
        if hotplug_mib > 0 {
            sections.push((Section::Hotplug, postcard::to_allocvec(&hotplug_mib)?));
        }
        let bytes = envelope::write(&sections);
        if let Some(mut file) = self.given.as_ref() {
            return file.write_all(&bytes).map_err(failed("write", &path));
        }
        let mut file = File::create_new(&path).map_err(failed("make", &path))?;
        file.write_all(&bytes).map_err(failed("write", &path))?;
        self.name()
    }

    fn write_failed(&self) -> impl FnOnce(io::Error) -> WriteError + use<> {
        failed("write", &self.partial.join("memory"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.given.is_some() {
            return;
        }
        // Not there any more once it has its name.
        let _ = std::fs::remove_dir_all(&self.partial);
    }
}

/// How a snapshot's files are opened: so that a FIFO does not make this wait.
pub fn read_options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    options
}

/// `directory` with `.partial` after its name.
fn partial_name(directory: &Path) -> PathBuf {
    let mut name = OsString::from(directory);
    name.push(".partial");
    name.into()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError + use<> {
    let path = path.to_owned();
    move |source| WriteError::File { action, path, source }
}

impl Snapshot {
    /// Reads the snapshot in `directory`, but for its memory.
    pub fn read(directory: &Path) -> Result<Self, ReadError> {
        Self::read_state(directory, &directory.join("state"))
    }

    /// Reads the snapshot whose state is in the file `state`, but for its memory.
    pub fn read_state(directory: &Path, state: &Path) -> Result<Self, ReadError> {
        let file = held::open(&read_options(), state);
        let file = file.map_err(|source| ReadError::File { path: state.to_owned(), source })?;
        Self::parse(directory, &whole(file, state)?)
    }

    /// Reads the snapshot in `directory`, whose state file is open, but for its memory.
    pub fn read_from(directory: &Path, state: File) -> Result<Self, ReadError> {
        Self::parse(directory, &whole(state, &directory.join("state"))?)
    }

    /// Opens the state file of the snapshot in `directory`.
    pub fn open_state(directory: &Path) -> io::Result<File> {
        read_options().open(directory.join("state"))
    }

    /// The snapshot in `directory` whose state file has `bytes`.
    pub fn parse(directory: &Path, bytes: &[u8]) -> Result<Self, ReadError> {
        let path = directory.join("state");
        let damaged = |source| ReadError::Envelope { path: path.clone(), source };
        let envelope = Envelope::parse(bytes).map_err(damaged)?;
        let section = |section| envelope.section(section).map(|body| (section, body)).map_err(damaged);
        let mut fingerprint: Fingerprint = decode(&path, section(Section::Fingerprint)?)?;
        if let Ok(found) = section(Section::Hotplug) {
            fingerprint.hotplug_mib = decode(&path, found)?;
        }
        Ok(Snapshot {
            fingerprint,
            state: decode(&path, section(Section::Vm)?)?,
            times: decode(&path, section(Section::Times)?)?,
            identity: decode(&path, section(Section::Identity)?)?,
            note: envelope.section(Section::Note).unwrap_or_default().to_vec(),
            directory: directory.to_owned(),
        })
    }

    /// Its memory, mapped privately: pages that the VM does not write are shared with all its clones. A
    /// difference has `bases`, each the base of the one before it; what is in a difference is not shared.
    pub fn map_memory(&self, bases: &[PathBuf]) -> Result<GuestRam, ReadError> {
        let Some(base) = &self.identity.base else {
            return match bases {
                [] => self.map_own_memory(),
                [base, ..] => {
                    Err(ReadError::TooManyBases { path: self.directory.clone(), base: base.clone() })
                }
            };
        };
        let wrong = |found| ReadError::Base { path: self.directory.clone(), wanted: base.id, found };
        let (directory, rest) = bases.split_first().ok_or_else(|| wrong(None))?;
        let below = Snapshot::read(directory)?;
        if below.identity.id != base.id {
            return Err(wrong(Some((directory.clone(), below.identity.id))));
        }
        let machine = below.fingerprint.check_size(self.fingerprint.vcpus, self.fingerprint.memory());
        machine.map_err(|source| ReadError::BaseMachine { path: directory.clone(), source })?;
        let memory = below.map_memory(rest)?;
        let (path, file) = self.open_memory()?;
        base.load(&memory, &file).map_err(|source| ReadError::File { path, source })?;
        Ok(memory)
    }

    /// Its memory as it is in the file `memory`, mapped privately, whatever it is a difference from: whoever calls
    /// has put the difference into a file of its base.
    pub fn map_file(&self, memory: &Path) -> Result<GuestRam, ReadError> {
        let (_, file) = self.open_file(memory.to_owned())?;
        Ok(memory::map_private(self.fingerprint.memory(), &file)?)
    }

    fn map_own_memory(&self) -> Result<GuestRam, ReadError> {
        self.map_file(&self.directory.join("memory"))
    }

    fn open_memory(&self) -> Result<(PathBuf, File), ReadError> {
        self.open_file(self.directory.join("memory"))
    }

    fn open_file(&self, path: PathBuf) -> Result<(PathBuf, File), ReadError> {
        let open = || -> io::Result<(File, u64)> {
            let file = held::open(&read_options(), &path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        let (file, found) = open().map_err(|source| ReadError::File { path: path.clone(), source })?;
        let wanted = self.fingerprint.memory().bytes();
        if found != wanted {
            return Err(ReadError::MemorySize { path, found, wanted });
        }
        Ok((path, file))
    }
}

/// What the state file `path` has.
fn whole(file: File, path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_STATE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| ReadError::File { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_STATE_BYTES {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(path: &Path, (section, body): (Section, &[u8])) -> Result<T, ReadError> {
    postcard::from_bytes(body).map_err(|source| ReadError::Section { path: path.to_owned(), section, source })
}
