//! The agent's own tools, which work on the container's files without any program of the image.
//!
//! ```text
//! host: Tool(plan) ─► agent forks; the child owns the connection from now on
//! child: Started ─► Stdout … (host: Stdin …, StdinEof) ─► Exited(0), or Failed at any point
//! ```
//!
//! A large file's content need not go through the connection: its blocks are on disks that the host has as files, so
//! the tool says where ([`Piece`]) and the host reads, or writes, them there.
//!
//! ```text
//! out of the guest:  tool: … Stdout, Pieces ─► host reads the disks ─► Done ─► tool: Stdout …
//! into the guest:    host: … Stdin (up to the file's header), Offer ─► tool makes room ─► Pieces ─► host writes the
//!                    disk ─► Done ─► … ; or Declined, and the host sends the content as Stdin
//! ```
//!
//! There is no credit: the child takes what the connection gives as fast as it can work on it, and a connection that
//! is not read makes its writer wait.

use serde::{Deserialize, Serialize};

/// Most bytes that one message of a tool's connection carries, in either direction.
pub const TOOL_CHUNK: usize = 512 << 10;

/// What a tool shall do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ToolPlan {
    /// Lists what the container changed in its image: for each path one of [`ADDED`], [`CHANGED`], [`DELETED`], the
    /// path from `/` on, a zero byte.
    Changes {
        /// Paths from `/` on that are not the container's doing, such as mount points, with all below them.
        ignored: Vec<String>,
    },
    /// The same as a tar stream with whiteouts (OCI image-spec `layer.md`).
    ChangesArchive {
        /// As in [`ToolPlan::Changes`].
        ignored: Vec<String>,
    },
    /// One byte, [`FILE`] or [`DIRECTORY`], and a tar stream of it with all below it.
    Read {
        /// Where it is in the container.
        path: String,
        /// What it is called in the stream.
        name: String,
        /// If it is a symbolic link: take what it points to.
        follow: bool,
    },
    /// A tar stream of the container's root without what is mounted in it.
    ReadRoot,
    /// Writes what a tar stream on stdin holds.
    Write(WritePlan),
}

/// Where a tar stream goes, by the rules of `docker cp`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WritePlan {
    /// The destination in the container; a slash at its end asks for a directory.
    pub path: String,
    /// What the stream holds.
    pub source: Source,
    /// Owners are those of the stream; else root.
    pub keep_ids: bool,
}

/// What a tar stream on its way into a container holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Source {
    /// Entries with names of their own, for a directory that exists.
    Archive,
    /// One entry called `.` that is no directory.
    File {
        /// Its name, used if the destination is a directory.
        name: String,
    },
    /// A directory called `.` and what is below it.
    Directory {
        /// Its name, used if the destination is a directory; `None` to put only its content there.
        name: Option<String>,
    },
}

/// First byte of a record of [`ToolPlan::Changes`]: not in the image.
pub const ADDED: u8 = b'A';
/// First byte of a record of [`ToolPlan::Changes`]: another one than in the image, or something below it is.
pub const CHANGED: u8 = b'C';
/// First byte of a record of [`ToolPlan::Changes`]: in the image and not here.
pub const DELETED: u8 = b'D';

/// Before the stream of [`ToolPlan::Read`]: it is no directory.
pub const FILE: u8 = b'f';
/// Before the stream of [`ToolPlan::Read`]: it is a directory.
pub const DIRECTORY: u8 = b'd';

/// A file from this size on has its content read and written on the disks.
pub const LARGE_FILE: u64 = 256 << 10;

/// Most pieces in one message. A file in more of them takes several messages, each answered.
pub const MAX_PIECES: usize = 10_000;

/// A part of a file's content, in the order of the file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Piece {
    /// On which disk.
    pub disk: Disk,
    /// Byte on that disk.
    pub at: u64,
    /// Bytes.
    pub length: u64,
}

/// A disk of the container.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Disk {
    /// None: a hole, which reads as zeros.
    Hole,
    /// The image's.
    Image,
    /// The writable layer's.
    Writable,
}
