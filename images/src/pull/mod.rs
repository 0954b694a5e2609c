//! Pulling: from a source's text to an [`Image`] whose every blob is verified and in the store.
//!
//! ```text
//!           fetch: hostile bytes, to be confined                       adopt
//! registry ──► remote::Remote ──┐
//! oci:, oci-archive: ► layout ──┼─► Resolved ─► origin::Transfer ─► blobs/ ─► refs/ ─► Image
//! docker-archive: ► docker ─────┘
//! dir: ──────────────────────────────────────────────────────────────────────────────► Image
//! ```
//!
//! [`Store::pull`] does both in one process. `engine` fetches in a process of its own, which holds little.
//!
//! The name is written last: until then a crash leaves only blobs and partial blobs, which the next pull goes on with.

mod archive;
mod docker;
mod error;
mod layout;
mod load;
mod origin;
mod remote;

use std::time::{SystemTime, UNIX_EPOCH};

pub use error::{ArchiveError, Failure, PullError};
pub use load::{LoadFrom, Unnamed};
use oci_spec::image::{Descriptor, ImageConfiguration};
use origin::{Origin, Transfer};
use remote::Remote;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::{Contents, Image};
use crate::manifest::{self, MAX_CONFIG_BYTES, Manifest, ManifestError};
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::{Reference, Version};
use crate::registry::{Access, Client, RegistryError, RegistryOptions};
use crate::retry::retried;
use crate::signature::{self, PublicKey, SignatureError};
use crate::source::ImageSource;
use crate::store::{Lease, Record, Store, StoreError};

/// When to ask the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Only if the image is not in the store. Local archives and layouts are always read again.
    #[default]
    Missing,
    /// Every time; what is unchanged is not fetched again.
    Always,
    /// Never: the image must be in the store.
    Never,
}

impl std::str::FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(format!("\"{text}\" is not a pull policy: missing, always or never")),
        }
    }
}

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// Which platform's image of several.
    pub platform: Platform,
    /// How to talk to registries.
    pub registry: RegistryOptions,
    /// How many layers at once.
    pub parallel: usize,
    /// Only what this key has signed.
    pub signed_by: Option<PublicKey>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            policy: PullPolicy::default(),
            platform: Platform::host(),
            registry: RegistryOptions::default(),
            parallel: 3,
            signed_by: None,
        }
    }
}

/// A manifest for one platform, verified, not yet stored.
#[derive(Clone)]
struct Resolved {
    manifest: Manifest,
    digest: Digest,
    bytes: Vec<u8>,
    /// What the source calls this version: the index, if there is one.
    remote: Digest,
}

/// What [`Store::fetch`] brought: believed by nobody before [`Store::adopt`] has looked at it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fetched {
    record: Record,
}

/// What is here of an image before it is fetched.
#[derive(Debug)]
pub enum Present {
    /// All that is wanted.
    Image(Box<Image>),
    /// It is to be fetched; what an earlier pull brought, if that helps.
    Not(Option<Fetched>),
}

impl Store {
    /// Brings the image of `source` into the store, as far as `options` say and it is not there already.
    pub fn pull(
        &self,
        source: &ImageSource,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        let source = source.clone().absolute();
        let _lease = self.lease()?;
        match self.present(&source, options)? {
            Present::Image(image) => Ok(*image),
            Present::Not(known) => {
                let fetched = self.fetch(&source, options, known, progress)?;
                self.adopt(&source, options, fetched)
            }
        }
    }

    /// The image where nothing has to be fetched. `source` is absolute.
    pub fn present(&self, source: &ImageSource, options: &PullOptions) -> Result<Present, PullError> {
        let name = source.to_string();
        let lease = self.lease()?;
        let unsigned = |source| Err(PullError::Signature { image: name.clone(), source });
        if options.signed_by.is_some() && source.path().is_some() {
            return unsigned(SignatureError::NoRegistry);
        }
        if let ImageSource::Dir(path) = source {
            return directory(&name, path, lease).map(|image| Present::Image(Box::new(image)));
        }
        let stored = self.stored(&name, options, &lease)?;
        let is_checked = stored.is_none() || self.is_signed(&name, options)?;
        match (stored, options.policy) {
            (Some(_), PullPolicy::Never) if !is_checked => unsigned(SignatureError::NotChecked),
            (Some((image, _)), PullPolicy::Never) => Ok(Present::Image(Box::new(image))),
            (None, PullPolicy::Never) => Err(PullError::NotPresent { image: name }),
            (Some((image, _)), PullPolicy::Missing) if source.path().is_none() && is_checked => {
                Ok(Present::Image(Box::new(image)))
            }
            (Some((image, record)), _) if is_unchanged(source, options, &record) => {
                Ok(Present::Image(Box::new(image)))
            }
            (stored, _) => {
                Ok(Present::Not(stored.filter(|_| is_checked).map(|(_, record)| Fetched { record })))
            }
        }
    }

    /// Brings every blob of `source`, which is absolute, into the store; gives it no name. What it works on is hostile:
    /// `known` is what an earlier pull brought.
    ///
    /// The caller holds a [`Lease`].
    pub fn fetch(
        &self,
        source: &ImageSource,
        options: &PullOptions,
        known: Option<Fetched>,
        progress: &dyn Progress,
    ) -> Result<Fetched, PullError> {
        let name = source.to_string();
        let job = Job { name: &name, options, progress };
        progress.event(Event::Resolving { image: &name });
        let record = match source {
            ImageSource::Registry(reference) => from_registry(self, &job, reference, known)?,
            ImageSource::OciDir { path, tag } => {
                let layout = layout::Layout::dir(path);
                let resolved = layout.resolve(tag.as_deref(), &options.platform)?;
                self.take(&job, resolved, &layout)?
            }
            ImageSource::OciArchive { path, tag } => {
                let layout = layout::Layout::archive(archive::Archive::open(path, self)?);
                let resolved = layout.resolve(tag.as_deref(), &options.platform)?;
                self.take(&job, resolved, &layout)?
            }
            ImageSource::DockerArchive { path, reference } => {
                let mut archive = docker::DockerArchive::new(archive::Archive::open(path, self)?);
                let resolved = archive.resolve(archive.choose(reference.as_ref())?)?;
                self.take(&job, resolved, &archive)?
            }
            ImageSource::Dir(path) => {
                return Err(PullError::Directory {
                    path: path.clone(),
                    source: std::io::ErrorKind::IsADirectory.into(),
                });
            }
        };
        Ok(Fetched { record })
    }

    /// Checks what was fetched for `source`, and gives it its name.
    pub fn adopt(
        &self,
        source: &ImageSource,
        options: &PullOptions,
        fetched: Fetched,
    ) -> Result<Image, PullError> {
        let Fetched { record } = fetched;
        if let ImageSource::Registry(reference) = source
            && let Version::Digest(digest) = reference.version()
            && *digest != record.remote
        {
            let (expected, actual) = (digest.clone(), record.remote);
            let image = reference.familiar();
            return Err(RegistryError::ManifestMismatch { image, expected, actual }.into());
        }
        self.name(&source.to_string(), options, record)
    }

    /// Gives `record` a name, if all of it is here and it is for the platform that is asked for.
    fn name(&self, name: &str, options: &PullOptions, record: Record) -> Result<Image, PullError> {
        let image = self.load(name, &record, self.lease()?)?;
        let platform = platform_of(&image.config, &options.platform);
        check_platform(name, &options.platform, &platform)?;
        let checked = options.signed_by.as_ref().map(PublicKey::fingerprint);
        let record = Record { platform: platform.to_string(), signed_by: checked, ..record };
        self.refs.update(|names| {
            names.images.insert(name.to_owned(), record);
            Ok(())
        })?;
        Ok(image)
    }

    /// The image if all of it is here for the platform that is asked for.
    fn stored(
        &self,
        name: &str,
        options: &PullOptions,
        lease: &Lease,
    ) -> Result<Option<(Image, Record)>, StoreError> {
        let names = self.refs.load()?;
        let Some(record) = names.images.get(name) else { return Ok(None) };
        let platform = record.platform.parse::<Platform>();
        if !platform.is_ok_and(|have| matches(&options.platform, &have)) {
            return Ok(None);
        }
        // What is damaged is pulled again.
        Ok(self.load(name, record, lease.clone()).ok().map(|image| (image, record.clone())))
    }

    /// Whether the signature that is asked for was checked when the image came.
    fn is_signed(&self, name: &str, options: &PullOptions) -> Result<bool, StoreError> {
        let Some(key) = &options.signed_by else { return Ok(true) };
        let names = self.refs.load()?;
        Ok(names.images.get(name).is_some_and(|record| record.signed_by == Some(key.fingerprint())))
    }

    /// Fetches the blobs of `resolved` from `origin`.
    fn take(&self, job: &Job<'_>, resolved: Resolved, origin: &dyn Origin) -> Result<Record, PullError> {
        let Job { name, options, progress } = *job;
        let Resolved { manifest, digest, bytes, remote } = resolved;
        let refused = |source| PullError::Manifest { image: name.to_owned(), source };
        let timing = options.registry.timing;
        let transfer = Transfer {
            store: self,
            origin,
            timing,
            parallel: options.parallel,
            progress: &crate::progress::Silent,
        };
        if manifest.config.size > MAX_CONFIG_BYTES {
            let text = format!("a configuration of {} bytes", manifest.config.size);
            return Err(refused(ManifestError::Unsupported(text)));
        }
        transfer.all(std::slice::from_ref(&manifest.config))?;
        let config = self.blobs.read(&manifest.config.digest, MAX_CONFIG_BYTES)?;
        let (config, _) = manifest::parse_config(&config, manifest.layers.len()).map_err(refused)?;
        let platform = platform_of(&config, &options.platform);
        check_platform(name, &options.platform, &platform)?;
        let (layers, total) = (manifest.layers.len(), manifest.layer_bytes());
        progress.event(Event::Resolved { manifest: &digest, layers, bytes: total });
        Transfer { progress, ..transfer }.all(&manifest.layers)?;
        self.blobs.write(&digest, &bytes)?;
        let pulled_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Whoever asks for a signature has checked it by now.
        let signed_by = options.signed_by.as_ref().map(PublicKey::fingerprint);
        Ok(Record { manifest: digest, platform: platform.to_string(), pulled_at, remote, signed_by })
    }
}

/// What every step of one pull knows.
#[derive(Clone, Copy)]
struct Job<'a> {
    name: &'a str,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
}

fn from_registry(
    store: &Store,
    job: &Job<'_>,
    reference: &Reference,
    known: Option<Fetched>,
) -> Result<Record, PullError> {
    let Job { options, progress, .. } = *job;
    let client = retried(options.registry.timing, "the connection", progress, || {
        Client::connect(reference, Access::Pull, &options.registry)
    })?;
    let remote = Remote { client: &client, reference, options, progress };
    if let Some(Fetched { record }) = known {
        // Asking for the digest alone does not count against limits on pulls.
        if remote.current()?.as_ref() == Some(&record.remote) {
            return Ok(record);
        }
    }
    let resolved = remote.resolve()?;
    if let Some(key) = &options.signed_by {
        let image = || job.name.to_owned();
        let refused = |source| PullError::Signature { image: image(), source };
        signature::check(&client, &resolved.remote, key).map_err(refused)?;
    }
    store.take(job, resolved, &client)
}

/// An image without layers: the directory is the root filesystem, and nothing says what to run in it.
fn directory(name: &str, path: &std::path::Path, lease: Lease) -> Result<Image, PullError> {
    let failed = |source| PullError::Directory { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(std::io::ErrorKind::NotADirectory.into()));
    }
    let digest = Digest::of(name.as_bytes());
    let platform = Platform::host();
    let mut config = ImageConfiguration::default();
    config.set_architecture(platform.architecture.as_str().into());
    config.set_os(platform.os.as_str().into());
    Ok(Image {
        name: name.to_owned(),
        manifest_digest: digest.clone(),
        config_digest: digest,
        config,
        healthcheck: None,
        contents: Contents::Directory(path.to_owned()),
        _lease: lease,
    })
}

/// What an image is built for; a configuration that does not say counts as what was asked for.
fn platform_of(config: &ImageConfiguration, wanted: &Platform) -> Platform {
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    Platform {
        os: or(config.os().to_string(), &wanted.os),
        architecture: or(config.architecture().to_string(), &wanted.architecture),
        variant: config.variant().clone().filter(|variant| !variant.is_empty()),
    }
}

fn matches(wanted: &Platform, have: &Platform) -> bool {
    wanted.matches(&have.os, &have.architecture, have.variant.as_deref())
}

fn check_platform(image: &str, wanted: &Platform, have: &Platform) -> Result<(), PullError> {
    match matches(wanted, have) {
        true => Ok(()),
        false => Err(PullError::Platform {
            image: image.to_owned(),
            wanted: wanted.to_string(),
            available: have.to_string(),
        }),
    }
}

/// Whether a layout in a directory still says what `record` is of.
fn is_unchanged(source: &ImageSource, options: &PullOptions, record: &Record) -> bool {
    let ImageSource::OciDir { path, tag } = source else { return false };
    let resolved = layout::Layout::dir(path).resolve(tag.as_deref(), &options.platform);
    resolved.is_ok_and(|resolved| resolved.digest == record.manifest && resolved.remote == record.remote)
}

/// The entry of an index for `platform`.
fn select<'a>(
    image: &str,
    platform: &Platform,
    entries: &'a [Descriptor],
) -> Result<&'a Descriptor, PullError> {
    platform.select(entries).ok_or_else(|| {
        let known = entries.iter().filter_map(|entry| entry.platform().as_ref());
        let mut names: Vec<String> = known
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            .filter(|name| name != "unknown/unknown")
            .take(20)
            .collect();
        names.dedup();
        PullError::Platform {
            image: image.to_owned(),
            wanted: platform.to_string(),
            available: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
        }
    })
}
