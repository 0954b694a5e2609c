//! Pulling from a registry: name → index → manifest → blobs.

use super::origin::{Opened, Origin};
use super::{PullError, PullOptions, Resolved};
use crate::digest::Digest;
use crate::manifest::{BlobRef, Document};
use crate::progress::Progress;
use crate::reference::{Reference, Version};
use crate::registry::{Client, Fetched, RegistryError};
use crate::retry::retried;

/// An index may point to an index; more of that is a loop.
const MAX_INDEX_DEPTH: usize = 3;

impl Origin for Client {
    fn open(&self, blob: &BlobRef, offset: u64) -> Result<Opened, PullError> {
        let stream = self.blob(blob, offset)?;
        Ok(Opened { offset: stream.offset, reader: stream.reader })
    }

    fn read_failed(&self, error: std::io::Error) -> PullError {
        self.interrupted(error).into()
    }

    fn ended_early(&self, blob: &BlobRef, received: u64) -> PullError {
        let (registry, digest) = (self.registry().to_owned(), blob.digest.clone());
        RegistryError::Truncated { registry, digest, received, expected: blob.size }.into()
    }
}

/// What a reference leads to on its registry.
pub(super) struct Remote<'a> {
    pub client: &'a Client,
    pub reference: &'a Reference,
    pub options: &'a PullOptions,
    pub progress: &'a dyn Progress,
}

impl Remote<'_> {
    /// What the registry calls the version of the reference now; `None` if it does not say.
    pub(super) fn current(&self) -> Result<Option<Digest>, PullError> {
        Ok(self.retried(|| self.client.manifest_digest(self.reference.version()))?)
    }

    /// The manifest for the platform that is asked for.
    pub(super) fn resolve(&self) -> Result<Resolved, PullError> {
        let mut version = self.reference.version().clone();
        let mut remote = None;
        for _ in 0..MAX_INDEX_DEPTH {
            let Fetched { digest, bytes } = self.retried(|| self.client.manifest(&version))?;
            let remote = remote.get_or_insert_with(|| digest.clone()).clone();
            match Document::parse(&bytes).map_err(|source| self.refused(source))? {
                Document::Manifest(manifest) => {
                    return Ok(Resolved { manifest: *manifest, digest, bytes, remote });
                }
                Document::Index(entries) => version = Version::Digest(self.select(&entries)?.digest),
            }
        }
        Err(PullError::Registry(RegistryError::Protocol {
            registry: self.reference.registry().to_owned(),
            reason: "its index leads to an index for ever".to_owned(),
        }))
    }

    fn select(&self, entries: &[oci_spec::image::Descriptor]) -> Result<BlobRef, PullError> {
        let image = self.reference.familiar();
        let entry = super::select(&image, &self.options.platform, entries)?;
        BlobRef::parse("the image index", entry).map_err(|source| self.refused(source))
    }

    fn refused(&self, source: crate::manifest::ManifestError) -> PullError {
        PullError::Manifest { image: self.reference.familiar(), source }
    }

    fn retried<T>(&self, attempt: impl Fn() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        retried(self.options.registry.timing, "the manifest", self.progress, attempt)
    }
}
