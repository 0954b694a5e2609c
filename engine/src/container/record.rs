//! Containers as files: `spec.json`, `state.json` and `name` in each one's data directory.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::id::ContainerId;
use super::spec::{ContainerSpec, SCHEMA};
use super::state::{State, Status};
use super::{Container, ContainerError, Table, file, id};
use crate::dirs::Dirs;

/// Largest file of these that is read.
const MAX_FILE: u64 = 4 << 20;
/// As large as these files are but for the strangest.
const SMALL_FILE: usize = 16 << 10;
/// Bytes kept for a state on a full disk: more than one has.
const SPARE: usize = 4096;

/// A container as its files describe it.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// As it was created.
    pub spec: ContainerSpec,
    /// What has become of it.
    pub state: State,
    /// Its data directory.
    #[serde(skip)]
    pub data: PathBuf,
    /// Its run directory.
    #[serde(skip)]
    pub run: PathBuf,
}

/// Why no container was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("no such container: {0:?}; `lighter ps -a` lists all")]
    Missing(String),
    /// There are several.
    #[error("{text:?} is the beginning of several containers' IDs: {ids}")]
    Ambiguous {
        /// As asked.
        text: String,
        /// What it could mean.
        ids: String,
    },
}

/// All containers, oldest first. One whose files are damaged is left out.
pub fn list(dirs: &Dirs) -> Vec<Record> {
    let entries = std::fs::read_dir(Table::data(dirs)).into_iter().flatten();
    let mut records: Vec<Record> =
        entries.filter_map(|entry| read(dirs, entry.ok()?.file_name().to_str()?).ok()).collect();
    records.sort_by_key(|record| record.spec.created_ns);
    records
}

/// The container that `text` means: a name, an ID, or the beginning of one.
pub fn find(dirs: &Dirs, text: &str) -> Result<Record, FindError> {
    let missing = || FindError::Missing(text.chars().take(200).collect());
    let plain = id::is_name(text);
    if let Some(record) = plain.then(|| read(dirs, text).ok()).flatten() {
        return Ok(record);
    }
    let names = names(dirs);
    let named: Vec<&str> = names.iter().filter(|(_, name)| name == text).map(|(id, _)| id.as_str()).collect();
    let begun =
        || names.iter().map(|(id, _)| id.as_str()).filter(|id| plain && id.starts_with(text)).collect();
    let matches: Vec<&str> = if named.is_empty() { begun() } else { named };
    match matches.as_slice() {
        [] => Err(missing()),
        [id] => read(dirs, id).map_err(|_| missing()),
        several => Err(FindError::Ambiguous { text: text.to_owned(), ids: several.join(", ") }),
    }
}

/// The container `id`.
pub fn read(dirs: &Dirs, id: &str) -> io::Result<Record> {
    read_with_size(dirs, id).map(|(record, _)| record)
}

/// The container `id`, and the bytes of its files.
pub(super) fn read_with_size(dirs: &Dirs, id: &str) -> io::Result<(Record, u64)> {
    let data = Table::data(dirs).join(id);
    let spec_file = read_file(&data.join("spec.json"))?;
    let spec: ContainerSpec = serde_json::from_slice(&spec_file)?;
    if spec.schema != SCHEMA {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("its format is {:?}", spec.schema)));
    }
    let name = read_name(&data)?;
    let state_file = read_file(&data.join("state.json"))?;
    let state = serde_json::from_slice(&state_file)?;
    let bytes = (spec_file.len() + name.len() + state_file.len()) as u64;
    Ok((Record { name, spec, state, data, run: Table::run(dirs).join(id) }, bytes))
}

/// The state of the container whose data directory is `data`.
pub(super) fn read_state(data: &Path) -> io::Result<State> {
    read_json(&data.join("state.json"))
}

/// The container `id`, which was described and whose keeper has not written a state yet.
pub fn placeholder(dirs: &Dirs, id: &ContainerId) -> io::Result<Record> {
    let data = Table::data(dirs).join(id.as_str());
    let spec = read_json(&data.join("spec.json"))?;
    let name = read_name(&data)?;
    Ok(Record { name, spec, state: State::default(), data, run: Table::run(dirs).join(id.as_str()) })
}

/// Name, specification and state of a container of ours. One that was never started has no state yet.
pub fn load(container: &Container) -> Result<(String, ContainerSpec, State), ContainerError> {
    let data = container.data();
    let name = read_name(data).map_err(file("read the name of", data))?;
    let spec = read_json(&data.join("spec.json")).map_err(file("read the specification of", data))?;
    let state = match read_json(&data.join("state.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
        result => result.map_err(file("read the state of", data))?,
    };
    Ok((name, spec, state))
}

/// Name and specification of every container that was described, also of those that never started.
pub fn described(dirs: &Dirs) -> Vec<(String, ContainerSpec)> {
    let spec = |(id, name): (String, String)| {
        Some((name, read_json(&Table::data(dirs).join(id).join("spec.json")).ok()?))
    };
    names(dirs).into_iter().filter_map(spec).collect()
}

/// ID and name of every container.
pub(super) fn names(dirs: &Dirs) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(Table::data(dirs)).into_iter().flatten();
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = read_name(&entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, name))
        })
        .collect()
}

impl Record {
    /// The socket of its keeper.
    pub fn keeper(&self) -> PathBuf {
        self.run.join("keeper.sock")
    }

    /// The socket of its vsock device.
    pub fn vsock(&self) -> PathBuf {
        self.run.join("v.sock")
    }

    /// The VMM's control socket.
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// What it wrote.
    pub fn log(&self) -> PathBuf {
        self.data.join("log")
    }

    /// Its guest's console.
    pub fn console(&self) -> PathBuf {
        self.data.join("console.log")
    }

    /// Reads the state again; `None` once the container is gone.
    pub fn refresh(&mut self) -> Option<()> {
        self.state = read_json(&self.data.join("state.json")).ok()?;
        Some(())
    }

    /// It runs, maybe paused.
    pub fn is_running(&self) -> bool {
        matches!(self.state.status, Status::Running | Status::Paused)
    }
}

/// Writes `value` to `path`, whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("json.new");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    std::fs::rename(partial, path)
}

/// As [`write_json`], for a file that is written again and again: a spare file keeps room for one more version, so that
/// how a container ended can be noted on a full disk too.
pub fn rewrite_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let spare = path.with_extension("json.spare");
    match write_json(path, value) {
        Ok(()) => {
            if !spare.exists() {
                // Only a full disk needs it, and a disk that is full already has no room for it.
                let _ = std::fs::write(&spare, [b' '; SPARE]);
            }
            Ok(())
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            let bytes = serde_json::to_vec(value)?;
            let mut file = std::fs::File::options().write(true).open(&spare).map_err(|_| error)?;
            file.write_all(&bytes)?;
            file.set_len(bytes.len() as u64)?;
            std::fs::rename(spare, path)
        }
        Err(error) => Err(error),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&read_file(path)?)?)
}

fn read_name(data: &Path) -> io::Result<String> {
    String::from_utf8(read_file(&data.join("name"))?).map_err(io::Error::other)
}

/// At most [`MAX_FILE`] bytes of a file; a small one, as they all are, in one read.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let mut start = [0; SMALL_FILE];
    // A regular file gives fewer bytes than were asked for at its end only.
    let count = file.read(&mut start)?;
    let mut bytes = start[..count].to_vec();
    if count == SMALL_FILE {
        file.take(MAX_FILE - count as u64).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
