//! Pushing: an image of the store goes to a registry, blob by blob, the manifest last.
//!
//! A blob that the repository has is not sent; one that another repository of the same registry is known to have is
//! taken over from there; anything else is sent, and goes on where a broken connection left it if the registry
//! remembers. The manifest goes byte by byte as it is stored, so its digest stays what it was.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::{BlobRef, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest};
use crate::parallel;
use crate::progress::{Event, Progress};
use crate::reference::{Reference, Version};
use crate::registry::{Access, Client, RegistryError, RegistryOptions, Upload};
use crate::retry::{Retries, Retryable, retried};
use crate::source::ImageSource;
use crate::store::{Store, StoreError};

/// A blob up to this size is sent in one request, without asking for the state in between.
const SMALL_BLOB: u64 = 256 << 10;

/// How often what was sent is told.
const TELL_EVERY: u64 = 1 << 20;

/// A failed push.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Between here and the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// In the content store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image has no name that a registry could know it by.
    #[error(
        "\"{0}\" is no name in a registry: tag it first, `lighter tag {0} REGISTRY/NAME:TAG`, or name the destination behind it"
    )]
    NoReference(String),
    /// A digest names what is there already; something new needs a tag.
    #[error("{target} names a digest, but the image's manifest is {manifest}: push it to a tag")]
    OtherDigest {
        /// Where it should go.
        target: String,
        /// What it is.
        manifest: Digest,
    },
    /// A blob could not be read.
    #[error("cannot read what is to be pushed")]
    Blob(#[source] io::Error),
    /// Another layer failed first; never the error that is reported.
    #[error("given up because another layer failed")]
    Cancelled,
}

impl Retryable for PushError {
    fn registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(error) => Some(error),
            _ => None,
        }
    }
}

/// How to push.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// How to talk to the registry.
    pub registry: RegistryOptions,
    /// How many layers at once.
    pub parallel: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { registry: RegistryOptions::default(), parallel: 3 }
    }
}

/// What is in the registry now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Where.
    pub name: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's size in bytes.
    pub size: u64,
    /// Bytes of layers and configuration that were sent; the registry had the rest.
    pub sent: u64,
}

impl Store {
    /// Puts the image called `name` into the registry of `target`, or of its own name.
    pub fn push(
        &self,
        name: &str,
        target: Option<&Reference>,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Pushed, PushError> {
        let image = self.image(name)?;
        let target = match target {
            Some(target) => target.clone(),
            None => match image.name.parse() {
                Ok(ImageSource::Registry(reference)) => reference,
                _ => return Err(PushError::NoReference(image.name)),
            },
        };
        let bytes = self.blobs.read(&image.manifest_digest, MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&bytes)
            .map_err(|source| StoreError::Manifest { name: image.name.clone(), source })?;
        let digest = &image.manifest_digest;
        if let Version::Digest(named) = target.version()
            && named != digest
        {
            return Err(PushError::OtherDigest { target: target.to_string(), manifest: digest.clone() });
        }
        progress.event(Event::Resolved {
            manifest: digest,
            layers: manifest.layers.len(),
            bytes: manifest.layer_bytes(),
        });
        let timing = options.registry.timing;
        let access = Access::Push { mount_from: self.relative(&target, &manifest)? };
        let client = retried(timing, "the connection", progress, || {
            Client::connect(&target, access.clone(), &options.registry)
        })?;
        let path = |digest: &Digest| self.blobs.path(digest);
        let small = |digest: &Digest| self.blobs.read(digest, MAX_CONFIG_BYTES).map_err(io::Error::other);
        let sender = Sender::new(&client, options, progress, &path, &small);
        sender.send_all(&manifest.layers, &manifest.config)?;
        let media_type = media_type(&bytes, &manifest);
        retried(timing, "the manifest", progress, || {
            client.put_manifest(target.version(), &media_type, &bytes)
        })?;
        let sent = sender.sent();
        Ok(Pushed { name: target.to_string(), digest: digest.clone(), size: bytes.len() as u64, sent })
    }

    /// Another repository of the target's registry that has the most bytes of `manifest`, as far as the store knows.
    fn relative(&self, target: &Reference, manifest: &Manifest) -> Result<Option<String>, StoreError> {
        let wanted: BTreeSet<&Digest> = manifest.layers.iter().map(|layer| &layer.digest).collect();
        let names = self.refs.load()?;
        let shared = names.images.iter().filter_map(|(name, record)| {
            let Ok(ImageSource::Registry(reference)) = name.parse() else { return None };
            let other = reference.repository() != target.repository();
            if reference.registry() != target.registry() || !other {
                return None;
            }
            let layers = self.manifest(name, &record.manifest).ok()?.layers;
            let bytes: u64 =
                layers.iter().filter(|layer| wanted.contains(&layer.digest)).map(|l| l.size).sum();
            (bytes > 0).then(|| (bytes, reference.repository().to_owned()))
        });
        Ok(shared.max().map(|(_, repository)| repository))
    }
}

/// Where the blobs of a push are.
type PathOf<'a> = &'a (dyn Fn(&Digest) -> PathBuf + Sync);
/// The bytes of a small one.
type BytesOf<'a> = &'a (dyn Fn(&Digest) -> io::Result<Vec<u8>> + Sync);

/// What every step of one push knows.
pub(crate) struct Sender<'a> {
    client: &'a Client,
    options: &'a PushOptions,
    progress: &'a dyn Progress,
    path: PathOf<'a>,
    small: BytesOf<'a>,
    sent: AtomicU64,
}

impl<'a> Sender<'a> {
    /// Sends blobs whose files are at `path`, and whose bytes `small` reads if they are few.
    pub(crate) fn new(
        client: &'a Client,
        options: &'a PushOptions,
        progress: &'a dyn Progress,
        path: PathOf<'a>,
        small: BytesOf<'a>,
    ) -> Self {
        Self { client, options, progress, path, small, sent: AtomicU64::new(0) }
    }

    /// Brings all layers to the registry, then the configuration.
    pub(crate) fn send_all(&self, layers: &[BlobRef], config: &BlobRef) -> Result<(), PushError> {
        let mut seen = BTreeSet::new();
        let layers: Vec<&BlobRef> = layers.iter().filter(|blob| seen.insert(&blob.digest)).collect();
        parallel::for_each(&layers, self.options.parallel, |blob, cancelled| self.blob(blob, cancelled))?;
        self.blob(config, &AtomicBool::new(false))
    }

    /// Bytes that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Brings one blob to the registry, however often that takes.
    fn blob(&self, blob: &BlobRef, cancelled: &AtomicBool) -> Result<(), PushError> {
        let what = format!("layer {}", blob.digest.short());
        let timing = self.options.registry.timing;
        let mut retries = Retries::new(timing);
        let mut upload: Option<Upload> = None;
        loop {
            let before = upload.as_ref().map_or(0, |upload| upload.position);
            match self.attempt(blob, &mut upload, cancelled) {
                Ok(()) => return Ok(()),
                Err(_) if cancelled.load(Ordering::Relaxed) => return Err(PushError::Cancelled),
                // The registry has lost the upload, or parts of it: another one may work.
                Err(error) if error.registry().is_some_and(RegistryError::is_forgotten) => {
                    if upload.take().is_none() {
                        return Err(error);
                    }
                    retries.pause(error, &what, self.progress)?;
                }
                Err(error) if error.is_transient() => {
                    if upload.as_ref().is_some_and(|upload| upload.position > before) {
                        retries = Retries::new(timing);
                    }
                    retries.pause(error, &what, self.progress)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn attempt(
        &self,
        blob: &BlobRef,
        upload: &mut Option<Upload>,
        cancelled: &AtomicBool,
    ) -> Result<(), PushError> {
        let digest = &blob.digest;
        let (client, progress) = (self.client, self.progress);
        match upload {
            Some(upload) => client.locate_upload(upload)?,
            None => {
                let present = client.has_blob(blob)?;
                if !present {
                    *upload = client.begin_upload(digest, true)?;
                }
                if upload.is_none() {
                    progress.event(Event::LayerCached { digest });
                    return Ok(());
                }
            }
        }
        let Some(upload) = upload else { return Ok(()) };
        let position = upload.position;
        progress.event(Event::LayerStarted { digest, size: blob.size, resumed_at: position });
        if blob.size <= SMALL_BLOB && position == 0 {
            client.put_small(upload, digest, &(self.small)(digest).map_err(PushError::Blob)?)?;
        } else {
            self.send(blob, upload, cancelled)?;
        }
        self.sent.fetch_add(blob.size.saturating_sub(position), Ordering::Relaxed);
        progress.event(Event::LayerDone { digest });
        Ok(())
    }

    fn send(&self, blob: &BlobRef, upload: &mut Upload, cancelled: &AtomicBool) -> Result<(), PushError> {
        let path = (self.path)(&blob.digest);
        let open = |position| {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(position))?;
            let told = position;
            Ok(Box::new(Told { file, position, told, blob, progress: self.progress, cancelled })
                as Box<dyn Read>)
        };
        while upload.position < blob.size {
            let before = upload.position;
            self.client.send_blob(upload, blob.size, &open)?;
            if upload.position <= before {
                return Err(self.client.stuck().into());
            }
        }
        Ok(self.client.finish_upload(upload, &blob.digest)?)
    }
}

/// A blob that tells how far it was read.
struct Told<'a> {
    file: File,
    position: u64,
    told: u64,
    blob: &'a BlobRef,
    progress: &'a dyn Progress,
    cancelled: &'a AtomicBool,
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up because another layer failed"));
        }
        let count = self.file.read(buffer)?;
        self.position += count as u64;
        if self.position >= self.told + TELL_EVERY {
            self.told = self.position;
            self.progress.event(Event::LayerBytes { digest: &self.blob.digest, position: self.position });
        }
        Ok(count)
    }
}

/// The manifest's own word for what it is, else what its configuration's type implies.
pub(crate) fn media_type(bytes: &[u8], manifest: &Manifest) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        media_type: Option<String>,
    }
    let named = serde_json::from_slice::<Named>(bytes).ok().and_then(|named| named.media_type);
    named.unwrap_or_else(|| {
        let docker = manifest.config.media_type == "application/vnd.docker.container.image.v1+json";
        let kind = if docker { "docker.distribution.manifest.v2" } else { "oci.image.manifest.v1" };
        format!("application/vnd.{kind}+json")
    })
}
