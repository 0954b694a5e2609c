//! Why a pull or an import failed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::manifest::ManifestError;
use crate::registry::RegistryError;
use crate::retry::Retryable;
use crate::signature::SignatureError;
use crate::store::StoreError;

/// A failed pull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Between here and the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// In the content store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// In an archive or a layout on this host.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The manifest or the configuration is refused.
    #[error("image {image} cannot be used")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        source: ManifestError,
    },
    /// The image is not here and must not be fetched.
    #[error(
        "image {image} is not in the store, and --pull never forbids to fetch it: `lighter pull {image}`"
    )]
    NotPresent {
        /// The image.
        image: String,
    },
    /// It was built for another machine.
    #[error("image {image} is not built for {wanted}, only for {available}")]
    Platform {
        /// The image.
        image: String,
        /// The platform that was asked for.
        wanted: String,
        /// What the image has.
        available: String,
    },
    /// `dir:` does not name a directory.
    #[error("cannot use {} as a root directory", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not signed as it must be.
    #[error("image {image} is refused, because of --verify-key")]
    Signature {
        /// The image.
        image: String,
        /// Why.
        source: SignatureError,
    },
    /// In the process that fetched it.
    #[error("{text}")]
    Elsewhere {
        /// What sort of failure.
        failure: Failure,
        /// In words, with all causes.
        text: String,
    },
    /// Another layer failed first; never the error that is reported.
    #[error("given up because another layer failed")]
    Cancelled,
}

/// What sort of failure it was, for those who must not know more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// There is no such image.
    Missing,
    /// The registry or the network.
    Registry,
    /// What the image, the archive or the name is.
    Unusable,
    /// It is not signed as it must be.
    Unsigned,
    /// This host.
    Host,
}

impl PullError {
    /// What sort of failure it is.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Registry(RegistryError::NotFound { .. }) | Self::NotPresent { .. } => Failure::Missing,
            Self::Registry(_) => Failure::Registry,
            Self::Store(StoreError::NoSuchImage { .. }) => Failure::Missing,
            Self::Store(StoreError::Manifest { .. } | StoreError::NotATag { .. }) => Failure::Unusable,
            Self::Archive(_) | Self::Manifest { .. } | Self::Platform { .. } | Self::Directory { .. } => {
                Failure::Unusable
            }
            Self::Signature { .. } => Failure::Unsigned,
            Self::Elsewhere { failure, .. } => *failure,
            Self::Store(_) | Self::Cancelled => Failure::Host,
        }
    }
}

impl Retryable for PullError {
    fn registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(error) => Some(error),
            _ => None,
        }
    }
}

/// What is wrong with an archive or a layout.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no tar file, or it ends too early.
    #[error("{} is not a whole tar archive", path.display())]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What the reader says.
        source: std::io::Error,
    },
    /// Its structure is not that of an image.
    #[error("{} is not {kind}: {reason}", path.display())]
    Structure {
        /// The archive or directory.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It holds several images, or not the one that was named.
    #[error("{} holds {available}; name one of them after the path, separated by a colon", path.display())]
    Choice {
        /// The archive or directory.
        path: PathBuf,
        /// The images in it.
        available: String,
    },
    /// Decompressing it goes beyond a limit.
    #[error("{} is larger than {limit} bytes when decompressed: this looks like a decompression bomb", path.display())]
    Bomb {
        /// The archive.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
}
