//! An image that is on this host, ready to become a root filesystem.

use std::path::{Path, PathBuf};

use oci_spec::image::{Config, ImageConfiguration};

use crate::digest::{ChainId, DiffId, Digest};
use crate::healthcheck::Healthcheck;
use crate::manifest::Compression;
use crate::store::Lease;

/// One layer: a tar stream in the content store.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The content address of the stored (maybe compressed) bytes.
    pub digest: Digest,
    /// The digest that the uncompressed tar stream must have. Whoever unpacks it verifies that.
    pub diff_id: DiffId,
    /// As the manifest says.
    pub media_type: String,
    /// How the stored bytes are compressed, by the media type. Images exist that lie; the bytes decide
    /// ([`Compression::sniff`]).
    pub compression: Compression,
    /// The size of the stored bytes.
    pub size: u64,
    path: PathBuf,
}

impl Layer {
    /// A layer whose blob is at `path`.
    pub fn new(digest: Digest, diff_id: DiffId, media_type: String, size: u64, path: PathBuf) -> Self {
        let compression = Compression::of_media_type(&media_type).unwrap_or(Compression::None);
        Self { digest, diff_id, media_type, compression, size, path }
    }

    /// The blob, already verified against [`Layer::digest`].
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What an image's root filesystem is made of.
#[derive(Clone, Debug)]
pub enum Contents {
    /// Layers, lowest first.
    Layers {
        /// The identity of the whole stack: what the root filesystem is cached by.
        chain_id: ChainId,
        /// The layers, lowest first. Their diff IDs give `chain_id`.
        layers: Vec<Layer>,
    },
    /// A plain directory (`dir:PATH`), which may change at any time.
    Directory(PathBuf),
}

/// An image with its configuration. As long as it lives nobody's garbage collection removes its blobs or root
/// filesystem; drop it when the virtual machine has opened its disks.
#[derive(Clone, Debug)]
pub struct Image {
    /// The normalized name it was asked by.
    pub name: String,
    /// The content address of its manifest, for this platform. For a directory: the hash of its path.
    pub manifest_digest: Digest,
    /// The content address of its configuration, which is Docker's image ID.
    pub config_digest: Digest,
    /// Entrypoint, command, environment, user, working directory, stop signal, ports, volumes, history.
    pub config: ImageConfiguration,
    /// Docker's addition to it.
    pub healthcheck: Option<Healthcheck>,
    /// What its root filesystem is made of.
    pub contents: Contents,
    /// Keeps garbage collection away.
    pub(crate) _lease: Lease,
}

impl Image {
    /// The part of the configuration that says how its process runs; all empty where the image says nothing.
    pub fn process(&self) -> Config {
        self.config.config().clone().unwrap_or_default()
    }

    /// The layers, lowest first; none for a directory.
    pub fn layers(&self) -> &[Layer] {
        match &self.contents {
            Contents::Layers { layers, .. } => layers,
            Contents::Directory(_) => &[],
        }
    }

    /// What the root filesystem is cached by; `None` for a directory.
    pub fn chain_id(&self) -> Option<&ChainId> {
        match &self.contents {
            Contents::Layers { chain_id, .. } => Some(chain_id),
            Contents::Directory(_) => None,
        }
    }

    /// The sum of the layers' sizes, as stored.
    pub fn size(&self) -> u64 {
        self.layers().iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}
