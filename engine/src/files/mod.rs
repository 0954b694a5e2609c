//! The files of a container: what it changed, copies in and out, new images of it.
//!
//! All of it is done in the guest by the agent's tools, which know the container's root, and goes over vsock as tar.
//! What comes from there is a guest's word: nothing in it leads out of the host's destination ([`archive::Trust`]).

mod copy;
mod disks;
mod tool;

use std::io::{self, Read as _, Write};
use std::path::PathBuf;

use agent_protocol::tool::{ADDED, CHANGED, DELETED, ToolPlan};
use archive::ArchiveError;
use images::commit::{CommitError, CommitOptions};
use images::{Image, Platform, Reference, Store};
use serde::Serialize;

pub use copy::{CopyOptions, Packed, Source, unpack};
pub use disks::Disks;
use tool::Tool;

use crate::container::record::Record;
use crate::container::state::Status;

/// A list of changes that is longer is not one that anybody reads (stops exhaustion of memory by a guest).
const MAX_CHANGES_BYTES: u64 = 256 << 20;

/// Why files could not be had or written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Its files are in a machine that is off, or stands still.
    #[error("container {name:?} is {status}: its files can be reached while it runs or is stopped")]
    NotRunning {
        /// The container.
        name: String,
        /// What it is.
        status: &'static str,
    },
    /// The guest's agent cannot be reached.
    #[error("cannot reach the container's guest at {}", path.display())]
    Connect {
        /// The socket of its vsock device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection ended, or what came is no answer.
    #[error("the container's guest is lost")]
    Lost(#[source] io::Error),
    /// The guest refuses, before anything was copied.
    #[error("in the container: {0}")]
    Guest(String),
    /// Something failed on the way, on either side.
    #[error("the copy failed")]
    Transfer(#[source] io::Error),
    /// Packing or extracting failed on the host's side.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// No image was made.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The list of changes is no list.
    #[error("the container's guest sent a list of changes that is none")]
    Changes,
}

/// A guest whose container has its files mounted.
#[derive(Debug)]
pub struct Guest {
    /// The socket of its vsock device.
    pub vsock: PathBuf,
    /// Where something is mounted in the container: no change of its own.
    pub mounts: Vec<String>,
    /// Its disks, if it has a writable one: large files are read and written there.
    pub disks: Option<Disks>,
}

/// How a path differs from the image's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ChangeKind {
    /// Not in the image.
    #[serde(rename = "A")]
    Added,
    /// Another one than in the image, or something below it is.
    #[serde(rename = "C")]
    Changed,
    /// Not there any more.
    #[serde(rename = "D")]
    Deleted,
}

impl ChangeKind {
    /// The letter that `diff` shows.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// One line of `lighter diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// How.
    pub kind: ChangeKind,
    /// From `/` on. What is no UTF-8 is replaced.
    pub path: String,
}

impl Guest {
    /// The guest of a container that runs.
    pub fn of(record: &Record) -> Result<Self, FilesError> {
        match record.state.status {
            Status::Running => Ok(Self::behind(record, record.vsock())),
            status => Err(FilesError::NotRunning { name: record.name.clone(), status: status.name() }),
        }
    }

    /// The guest that has the disks of `record` and whose vsock device's socket this is.
    pub fn behind(record: &Record, vsock: PathBuf) -> Self {
        let (image, writable) = (record.data.join(&record.spec.rootfs), record.data.join("disk.ext4"));
        let disks = Disks::open(&image, &writable).ok();
        let mounts = record.spec.mounts.iter().map(|mount| mount.target.clone()).collect();
        Self { vsock, mounts, disks }
    }

    /// What the container changed in its image, each directory before what is in it.
    pub fn changes(&self) -> Result<Vec<FileChange>, FilesError> {
        let tool = self.tool(&ToolPlan::Changes { ignored: self.mounts.clone() })?;
        let mut bytes = Vec::new();
        tool.take(MAX_CHANGES_BYTES).read_to_end(&mut bytes).map_err(FilesError::Transfer)?;
        let list = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
        list.split(|byte| *byte == 0).filter(|record| !record.is_empty()).map(change).collect()
    }

    /// Writes the container's root as a tar stream, without what is mounted in it.
    pub fn export(&self, out: &mut dyn Write) -> Result<(), FilesError> {
        let mut tool = self.tool(&ToolPlan::ReadRoot)?;
        io::copy(&mut tool, out).and_then(|_| out.flush()).map_err(FilesError::Transfer)
    }

    /// Makes an image: what the container changed, as one more layer on `base`. A base that is a directory has no
    /// layers, so then everything becomes one.
    pub fn commit(
        &self,
        store: &Store,
        base: &Image,
        name: Option<&Reference>,
        options: &CommitOptions,
    ) -> Result<Image, FilesError> {
        if base.chain_id().is_none() {
            let mut root = self.tool(&ToolPlan::ReadRoot)?;
            return Ok(store.import(&mut root, name, &Platform::host(), options)?);
        }
        let mut changes = self.tool(&ToolPlan::ChangesArchive { ignored: self.mounts.clone() })?;
        Ok(store.commit(base, &mut changes, name, options)?)
    }

    fn tool(&self, plan: &ToolPlan) -> Result<Tool, FilesError> {
        Tool::start(&self.vsock, plan, self.disks.clone())
    }
}

fn change(record: &[u8]) -> Result<FileChange, FilesError> {
    let (kind, path) = record.split_first().ok_or(FilesError::Changes)?;
    let kind = match *kind {
        ADDED => ChangeKind::Added,
        CHANGED => ChangeKind::Changed,
        DELETED => ChangeKind::Deleted,
        _ => return Err(FilesError::Changes),
    };
    Ok(FileChange { kind, path: String::from_utf8_lossy(path).into_owned() })
}
