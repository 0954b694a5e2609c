//! New images from tar streams: `commit` puts a layer of changes on an image, `import` makes one from nothing.
//!
//! ```text
//! tar ─► layer::pack ─► blob ┐
//! base's configuration ──────┴► edited as JSON ─► configuration ─► manifest ─► refs/ ─► Image
//!          --change, author, message, history
//! ```
//!
//! The configuration is edited as JSON, so that what Docker adds to it beyond the specification (health checks, build
//! triggers) stays. The manifest is always an OCI one, which Docker runs and every registry takes; the layers beneath
//! keep their blobs.

mod change;
mod config;
mod layer;
mod words;

use std::io::{self, BufReader, Read};
use std::time::{SystemTime, UNIX_EPOCH};

pub use change::{Change, ChangeError};
pub use layer::LayerCompression;
use serde_json::{Map, Value, json};
pub use words::WordError;

use crate::digest::{DiffId, Digest};
use crate::erofs::{self, DataWriter};
use crate::image::Image;
use crate::manifest::{Compression, MAX_CONFIG_BYTES, MAX_LAYERS};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Record, Store, StoreError};
use crate::tag;
use crate::unpack::limits::MAX_UNPACKED_BYTES;
use crate::unpack::{self, Limits, UnpackError};

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The stream of changed files broke.
    #[error("cannot read the files of the new layer")]
    Read(#[source] io::Error),
    /// A tar stream beyond the limit of one image.
    #[error("the new layer is larger than {MAX_UNPACKED_BYTES} bytes")]
    TooLarge,
    /// What was imported is no tar archive that could be a root filesystem.
    #[error("the archive cannot be a root filesystem")]
    Archive(#[source] UnpackError),
    /// The image beneath has no layers: it is a directory.
    #[error("{0} is a directory, which has no layers to put another one on")]
    NoLayers(String),
    /// The image beneath is full.
    #[error("the image has {MAX_LAYERS} layers already, the most that one may have")]
    TooManyLayers,
    /// A change does not fit the image's configuration.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The configuration beneath is not an object.
    #[error("the configuration of {0} is malformed")]
    Config(String),
    /// In the content store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a new image says of itself.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// How its layer is compressed.
    pub compression: LayerCompression,
    /// Members of the configuration's `config` that replace those of the image beneath: how the container was run.
    pub config: Map<String, Value>,
    /// Edits on top of that, in order.
    pub changes: Vec<Change>,
    /// Who made it.
    pub author: Option<String>,
    /// Shown by `history`.
    pub message: Option<String>,
    /// The command that made the layer, shown by `history`.
    pub created_by: Option<String>,
}

impl Store {
    /// Puts `tar`, the uncompressed changes with OCI whiteouts, as one more layer on `base` and names the result
    /// `name`. Without a name, it is named by its ID.
    pub fn commit(
        &self,
        base: &Image,
        tar: &mut dyn Read,
        name: Option<&Reference>,
        options: &CommitOptions,
    ) -> Result<Image, CommitError> {
        if base.chain_id().is_none() {
            return Err(CommitError::NoLayers(base.name.clone()));
        }
        let config = self.blobs.read(&base.config_digest, MAX_CONFIG_BYTES)?;
        let Ok(Value::Object(config)) = serde_json::from_slice(&config) else {
            return Err(CommitError::Config(base.name.clone()));
        };
        let layers = base.layers().iter().map(|layer| {
            let kind = match layer.compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{kind}");
            descriptor(&media_type, &layer.digest, layer.size)
        });
        let draft = Draft { config, layers: layers.collect(), platform: self.platform_of(base)? };
        self.make(draft, tar, name, options)
    }

    /// Makes an image for `platform` of one layer from `tar`, plain, gzip or zstd, whose root is the image's.
    pub fn import(
        &self,
        tar: &mut (dyn Read + Send),
        name: Option<&Reference>,
        platform: &Platform,
        options: &CommitOptions,
    ) -> Result<Image, CommitError> {
        let mut config = Map::new();
        config.insert("os".into(), json!(platform.os));
        config.insert("architecture".into(), json!(platform.architecture));
        if let Some(variant) = &platform.variant {
            config.insert("variant".into(), json!(variant));
        }
        let draft = Draft { config, layers: Vec::new(), platform: platform.to_string() };
        let mut head = [0; 4];
        let count = read_head(tar, &mut head).map_err(CommitError::Read)?;
        let whole = BufReader::with_capacity(256 << 10, head[..count].chain(tar));
        let mut plain: Box<dyn Read> = match Compression::sniff(&head[..count]) {
            Compression::None => Box::new(whole),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            Compression::Zstd => {
                Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(CommitError::Read)?)
            }
        };
        self.make(draft, &mut plain, name, options)
    }

    fn make(
        &self,
        draft: Draft,
        tar: &mut dyn Read,
        name: Option<&Reference>,
        options: &CommitOptions,
    ) -> Result<Image, CommitError> {
        name.map_or(Ok(()), tag::check)?;
        if draft.layers.len() >= MAX_LAYERS {
            return Err(CommitError::TooManyLayers);
        }
        let lease = self.lease()?;
        let from_nothing = draft.layers.is_empty();
        let layer = layer::pack(self, tar, options.compression)?;
        if from_nothing {
            // Whoever imports what is no root filesystem should learn it now, not from the first container.
            verify(self, &layer.digest, &layer.diff_id).map_err(CommitError::Archive)?;
        }
        let now = SystemTime::now();
        let config = config::edit(draft.config, &layer.diff_id, options, now)?;
        let config_digest = Digest::of(&config);
        self.blobs.write(&config_digest, &config)?;
        let mut layers = draft.layers;
        layers.push(descriptor(layer.media_type, &layer.digest, layer.size));
        let config_type = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config_type, &config_digest, config.len() as u64),
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        self.blobs.write(&digest, &manifest)?;
        let name = name.map_or_else(|| nameless(&config_digest), Reference::to_string);
        let pulled_at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = Record {
            manifest: digest.clone(),
            platform: draft.platform,
            pulled_at,
            remote: digest,
            signed_by: None,
        };
        self.refs.update(|names| {
            names.images.insert(name.clone(), record.clone());
            Ok(())
        })?;
        Ok(self.load(&name, &record, lease)?)
    }

    fn platform_of(&self, image: &Image) -> Result<String, StoreError> {
        let names = self.refs.load()?;
        let record = names.images.values().find(|record| record.manifest == image.manifest_digest);
        Ok(record.map_or_else(|| Platform::host().to_string(), |record| record.platform.clone()))
    }
}

/// What a new image begins with.
struct Draft {
    config: Map<String, Value>,
    layers: Vec<Value>,
    platform: String,
}

/// The name of an image that nobody named: what is typed as `sha256:ID`.
pub(crate) fn nameless(config: &Digest) -> String {
    format!("docker.io/library/{}:{}", config.algorithm().name(), config.hex())
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

fn read_head(reader: &mut dyn Read, head: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < head.len() {
        match reader.read(&mut head[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Unpacks a layer to nowhere.
fn verify(store: &Store, digest: &Digest, diff_id: &DiffId) -> Result<(), UnpackError> {
    let source = std::fs::File::open(store.blobs.path(digest)).map_err(UnpackError::Thread)?;
    let layer =
        unpack::Layer { name: digest.to_string(), diff_id: diff_id.clone(), source: Box::new(source) };
    let mut nowhere = Nowhere;
    let mut data = DataWriter::new(&mut nowhere);
    unpack::unpack(vec![layer], &mut data, &Limits::default(), &mut |_| ()).map(drop)
}

/// Takes a root filesystem's data and keeps nothing of it.
struct Nowhere;

impl erofs::Output for Nowhere {
    fn write_at(&mut self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
