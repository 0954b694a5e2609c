//! Snapshots of running containers, and copies of them.
//!
//! ```text
//! take:   keeper: Hold ─► VMM: snapshot, stays paused ─► disk: reflink or sparse copy ─► Release
//!         DATA/snapshots/NAME/{snapshot.json, vm/{memory,state}, disk.ext4, rootfs.erofs, agent.erofs}
//! copy:   a new container whose `resume/` links to vm/, with a copy of the disk ─► its keeper restores and adopts
//! clone:  take without a name, copy as often as wanted, forget
//! ```
//!
//! All copies map one memory file. Each has its own ID, name, host name, address, disk and random numbers.

pub mod archive;
mod copy;
mod manifest;
pub mod remote;
mod resumption;
mod store;
mod take;

use std::io;
use std::path::{Path, PathBuf};

pub use self::copy::{Place, copy};
pub use self::manifest::{Manifest, SCHEMA};
pub use self::resumption::Resumption;
pub use self::store::{Draft, Snapshot, SnapshotStore};
pub use self::take::{Taken, take};
use crate::container::ContainerError;
use crate::keeper::client::AskError;

/// Why a snapshot could not be made, found or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no machine to save.
    #[error(transparent)]
    Isolation(#[from] crate::isolation::IsolationError),
    /// The name is not one.
    #[error(
        "{0:?} is no name for a snapshot: use 2 to 128 letters, digits, '_', '.' and '-', the first one a letter or \
         digit"
    )]
    Name(String),
    /// It exists.
    #[error("there is a snapshot {0:?} already; `lighter snapshot rm` removes it")]
    Taken(String),
    /// There is none.
    #[error("no such snapshot: {0:?}; `lighter snapshot ls` lists all")]
    Missing(String),
    /// Its description is damaged or of another version.
    #[error("the snapshot in {} cannot be used: {why}", path.display())]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Its shares are files that other processes have open.
    #[error(
        "container {0:?} has volumes or directories of the host, which no snapshot can hold and no copy may share \
         unseen: only a container without -v and --mount (--tmpfs is fine) can be saved or cloned"
    )]
    Shares(String),
    /// Its memory holds what may be on no disk.
    #[error(
        "container {0:?} has secrets, and a snapshot would put them on a disk: only a container without --secret can \
         be saved or cloned"
    )]
    Secrets(String),
    /// The container cannot be saved now.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The VMM could not save it.
    #[error("cannot save the machine")]
    Save(#[from] vmm::control::ClientError),
    /// A copy's place could not be made.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A file.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File { action, path, source }
}

/// The machine within a snapshot, or within a container that goes on from one.
const MACHINE: &str = "vm";
/// Its files.
const MACHINE_FILES: [&str; 2] = ["memory", "state"];
/// The container's writable layer.
const DISK: &str = "disk.ext4";
/// The image's root filesystem.
const ROOTFS: &str = "rootfs.erofs";

/// Makes `to` the same file as `from`, or a copy where it cannot be.
fn link(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(|_| ())).map_err(file("link", from))
}
