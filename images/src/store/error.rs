//! What can go wrong in the content store.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::manifest::ManifestError;

/// A failed operation of the content store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused something.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No space is left. What was fetched stays, so the next try goes on there.
    #[error("no space left on the disk of {}: free some (`lighter system prune` helps) or use another --root", path.display())]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The disk is too small, known before anything was fetched.
    #[error(
        "the image needs {needed} bytes, but the disk of {} has {available} left: free some \
         (`lighter system prune` helps) or use another --root", path.display()
    )]
    NoRoom {
        /// The store's root.
        path: PathBuf,
        /// What is still to be written.
        needed: u64,
        /// What the file system gives.
        available: u64,
    },
    /// Bytes do not have the digest they were asked by.
    #[error(
        "the content of {expected} does not match its digest, it has {actual}: it was damaged or tampered with and has \
         been thrown away"
    )]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// Fewer or more bytes than the manifest says.
    #[error("the content of {digest} has {actual} bytes where its manifest says {expected}")]
    SizeMismatch {
        /// What was asked for.
        digest: Digest,
        /// The size in the manifest.
        expected: u64,
        /// What came; at most one chunk beyond `expected` is read.
        actual: u64,
    },
    /// A blob of an image is gone or damaged.
    #[error("blob {digest} is missing from the store or damaged: pull the image again with --pull always")]
    BlobLost {
        /// The blob.
        digest: Digest,
    },
    /// The list of images cannot be read.
    #[error("the list of images {} is damaged: remove it and pull the images again", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A stored manifest or configuration is refused.
    #[error("image {name}")]
    Manifest {
        /// The image.
        name: String,
        /// Why.
        source: ManifestError,
    },
    /// Nothing has this name or ID.
    #[error("no image \"{name}\" in the store: see `lighter images`, or fetch it with `lighter pull`")]
    NoSuchImage {
        /// The name or ID.
        name: String,
    },
    /// A digest cannot be chosen.
    #[error("{name} names a digest, which follows from an image's content: only a tag can be given to it")]
    NotATag {
        /// The reference.
        name: String,
    },
    /// An ID stands for several images.
    #[error("\"{id}\" stands for several images: {names}; use a name")]
    AmbiguousId {
        /// The ID or its beginning.
        id: String,
        /// The names it stands for.
        names: String,
    },
}

impl StoreError {
    /// The failure of `action` on `path`; running out of space has its own variant.
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            _ => Self::File { action, path, source },
        }
    }
}
