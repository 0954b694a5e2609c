//! What a container sees beside its image: directories and files of the host, named volumes, memory.
//!
//! ```text
//! -v, --mount, --tmpfs ─► parse ─► MountSpec ─► resolve: the host's paths, the image's VOLUMEs ─► spec.json
//! start: volumes made ─► FileServer (a process) ─► socket ─► VMM's fs device ─► agent mounts and binds
//! ```

pub mod parse;
mod resolve;
pub mod secret;
mod server;
pub mod spec;
pub mod store;

use std::io;
use std::path::PathBuf;

pub use resolve::{LONGEST_LIST, of_image, random_name, resolve};
pub use server::{FileServer, VERB, serve};
pub use spec::{MountKind, MountSpec};
pub use store::{ClaimedDisk, Volume, VolumeStore};

/// Volumes of one container that may be disks.
pub const MAX_DISKS: usize = 4;

/// Why there is no volume, or no mount.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// An option says what cannot be mounted.
    #[error("{option} {text:?} {why}")]
    Syntax {
        /// `-v`, `--mount`, `--tmpfs`
        option: &'static str,
        /// As it was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A name is none.
    #[error(
        "{0:?} is no name for a volume: use 2 to 128 letters, digits, '_', '.' and '-', the first one a letter or digit; \
         a directory of the host is written from / on, or with ./"
    )]
    Name(String),
    /// The host's path is not there.
    #[error("{} is not there, so it cannot be mounted: make it first (mkdir -p), or name a volume", path.display())]
    Source {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host's path is something else.
    #[error("{} is neither a directory nor a regular file: nothing else of the host can be mounted", .0.display())]
    Kind(PathBuf),
    /// Two mounts on one place.
    #[error("two mounts are for {0}: each place takes one")]
    Twice(String),
    /// Too many.
    #[error("{count} mounts: a container takes at most {LONGEST_LIST}")]
    TooMany {
        /// Number of them.
        count: usize,
    },
    /// There is none.
    #[error("no such volume: {0:?}; `lighter volume ls` lists all")]
    Missing(String),
    /// A secret is too large.
    #[error("a secret cannot be handed over: {why}")]
    Secret {
        /// What is wrong with it.
        why: String,
    },
    /// Somebody has it.
    #[error("volume {name:?} is in use by {containers}: remove them first")]
    InUse {
        /// The volume.
        name: String,
        /// Names of containers.
        containers: String,
    },
    /// A directory where a disk is wanted, or the other way round.
    #[error("there is a volume {name:?} already, and it is no disk: choose another name, or remove it first")]
    OtherKind {
        /// The volume.
        name: String,
    },
    /// Two machines must not write to one file system.
    #[error(
        "volume {name:?} is a disk, which one container at a time can have, and another one runs with it: stop that one \
         first, or use a volume that is a directory"
    )]
    DiskInUse {
        /// The volume.
        name: String,
    },
    /// It could not be made.
    #[error("cannot make the disk of volume {name:?}")]
    Disk {
        /// The volume.
        name: String,
        /// Why.
        source: images::ext4::Ext4Error,
    },
    /// More disks than slots.
    #[error("{count} volumes are disks: a container takes at most {MAX_DISKS}")]
    TooManyDisks {
        /// Number of them.
        count: usize,
    },
    /// A file of the volumes.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process that serves the host's directories.
    #[error("cannot serve the host's directories: {0}")]
    Server(String),
}
