//! The content store: blobs by digest, names, and the root filesystems built from them.
//!
//! ```text
//! ROOT/lock                     shared by whoever uses blobs, exclusive for garbage collection
//! ROOT/blobs/ALGORITHM/HEX      whole, verified blobs
//! ROOT/blobs/partial/           blobs on their way in
//! ROOT/refs/index.json          normalized name → manifest
//! ROOT/rootfs/CHAINID…          root filesystems; the file name begins with the chain ID's hexadecimal digits
//! ```
//!
//! Several processes may use one store at once, and any of them may be killed at any moment: what is half written is
//! in `partial/` or has a name of its own, and every lock is a flock, which dies with its holder.

mod blobs;
mod error;
mod gc;
mod lock;
mod partial;
mod refs;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

pub(crate) use blobs::Blobs;
pub use error::StoreError;
pub use gc::{Collected, DiskUsage, Removed, Usage};
pub use lock::Lease;
pub(crate) use partial::{Begin, Partial};
pub(crate) use refs::Names;
pub(crate) use refs::Record;
use refs::Refs;
use serde::Serialize;

use crate::digest::{ChainId, Digest};
use crate::healthcheck::Healthcheck;
use crate::image::{Contents, Image, Layer};
use crate::manifest::{self, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest, ManifestError};
use crate::source::ImageSource;

/// The content store below one root directory. Cheap to open and to clone; holds no lock itself.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) blobs: Blobs,
    pub(crate) refs: Refs,
}

/// One line of `lighter images`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// The normalized name.
    pub name: String,
    /// The digest of the configuration, which is Docker's image ID.
    pub id: Digest,
    /// The digest of the manifest of this platform.
    pub manifest: Digest,
    /// What the registry calls this version: the index, if there is one.
    pub remote: Digest,
    /// `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: String,
    /// When the image was built, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// When it was pulled or imported, in seconds since 1970.
    pub pulled_at: u64,
    /// The sum of the layers' sizes in bytes, as stored.
    pub size: u64,
}

impl Store {
    /// Opens the store at `root`, making the directories that are missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        create_dir(&root)?;
        create_dir(&root.join("rootfs"))?;
        let blobs = Blobs::open(root.join("blobs"))?;
        let refs = Refs::open(root.join("refs"))?;
        Ok(Self { root, blobs, refs })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where root filesystems are cached. The name of a file there must begin with [`ChainId`]'s hexadecimal digits,
    /// otherwise garbage collection takes it for a leftover.
    pub fn rootfs_dir(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// The image called `name`: a reference, a local source that was imported before, or the beginning (at least four
    /// digits) of the digest of its configuration or manifest.
    pub fn image(&self, name: &str) -> Result<Image, StoreError> {
        let lease = self.lease()?;
        let names = self.refs.load()?;
        let (name, record) = self.find_any(&names, name)?;
        self.load(&name, &record, lease)
    }

    /// All images, by name. One that is damaged is left out; pulling it again repairs it.
    pub fn images(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let _lease = self.lease()?;
        let names = self.refs.load()?;
        Ok(names.images.iter().filter_map(|(name, record)| self.summary(name, record).ok()).collect())
    }

    /// Keeps garbage collection away until it is dropped.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        Lease::acquire(&self.lock_path())
    }

    /// The image behind `record`, if all of it is here.
    pub(crate) fn load(&self, name: &str, record: &Record, lease: Lease) -> Result<Image, StoreError> {
        let refused = |source| StoreError::Manifest { name: name.to_owned(), source };
        let manifest = self.manifest(name, &record.manifest)?;
        let config = self.blobs.read(&manifest.config.digest, MAX_CONFIG_BYTES)?;
        let healthcheck = Healthcheck::of(&config);
        let (config, diff_ids) = manifest::parse_config(&config, manifest.layers.len()).map_err(refused)?;
        let chain_id = ChainId::of(&diff_ids);
        if let Some(lost) = manifest.layers.iter().find(|layer| !self.blobs.has(&layer.digest, layer.size)) {
            return Err(StoreError::BlobLost { digest: lost.digest.clone() });
        }
        let layers = manifest.layers.into_iter().zip(diff_ids).map(|(blob, diff_id)| {
            let path = self.blobs.path(&blob.digest);
            Layer::new(blob.digest, diff_id, blob.media_type, blob.size, path)
        });
        Ok(Image {
            name: name.to_owned(),
            manifest_digest: record.manifest.clone(),
            config_digest: manifest.config.digest,
            config,
            healthcheck,
            contents: Contents::Layers { chain_id, layers: layers.collect() },
            _lease: lease,
        })
    }

    fn summary(&self, name: &str, record: &Record) -> Result<ImageSummary, StoreError> {
        let refused = |source| StoreError::Manifest { name: name.to_owned(), source };
        let manifest = self.manifest(name, &record.manifest)?;
        let config = self.blobs.read(&manifest.config.digest, MAX_CONFIG_BYTES)?;
        let (config, _) = manifest::parse_config(&config, manifest.layers.len()).map_err(refused)?;
        Ok(ImageSummary {
            name: name.to_owned(),
            size: manifest.layer_bytes(),
            id: manifest.config.digest,
            manifest: record.manifest.clone(),
            remote: record.remote.clone(),
            platform: record.platform.clone(),
            created: config.created().clone(),
            pulled_at: record.pulled_at,
        })
    }

    pub(crate) fn manifest(&self, name: &str, digest: &Digest) -> Result<Manifest, StoreError> {
        let bytes = self.blobs.read(digest, MAX_MANIFEST_BYTES)?;
        Manifest::parse(&bytes)
            .map_err(|source: ManifestError| StoreError::Manifest { name: name.to_owned(), source })
    }

    /// A record that `text` means; several names of one image are no matter.
    pub(crate) fn find_any(&self, names: &Names, text: &str) -> Result<(String, Record), StoreError> {
        let matches = self.find_by_id(names, text);
        match matches.split_first() {
            Some(((name, first), rest)) if rest.iter().all(|(_, other)| other.manifest == first.manifest) => {
                self.find(names, text).or_else(|_| Ok(((*name).clone(), (*first).clone())))
            }
            _ => self.find(names, text),
        }
    }

    /// The one record that `text` means.
    pub(crate) fn find(&self, names: &Names, text: &str) -> Result<(String, Record), StoreError> {
        let normalized = text.parse::<ImageSource>().ok().map(|source| source.absolute().to_string());
        if let Some(found) = normalized.and_then(|name| names.images.get_key_value(&name)) {
            return Ok((found.0.clone(), found.1.clone()));
        }
        let matches = self.find_by_id(names, text);
        match matches.as_slice() {
            [] => Err(StoreError::NoSuchImage { name: text.chars().take(300).collect() }),
            [(name, record)] => Ok(((*name).clone(), (*record).clone())),
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
                Err(StoreError::AmbiguousId { id: text.to_owned(), names: names.join(", ") })
            }
        }
    }

    fn find_by_id<'a>(&self, names: &'a Names, text: &str) -> Vec<(&'a String, &'a Record)> {
        /// Fewer digits are more likely a name that was mistyped.
        const MIN_ID_LEN: usize = 4;
        let start = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = start.len() >= MIN_ID_LEN && start.bytes().all(|b| b.is_ascii_hexdigit());
        let means = |(name, record): &(&String, &Record)| {
            record.manifest.hex().starts_with(start)
                || self
                    .manifest(name, &record.manifest)
                    .is_ok_and(|manifest| manifest.config.digest.hex().starts_with(start))
        };
        names.images.iter().filter(|_| is_id).filter(means).collect()
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// Makes `dir` and its parents, for the owner only: images may hold secrets.
fn create_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StoreError::file("create the directory", dir, source))
}
