//! Archives as `docker save` writes them: `manifest.json` names a configuration and layers by their path.
//!
//! They have no manifest with digests, so one is made from what they hold. A plain layer's digest is its diff ID,
//! which the configuration gives; a compressed one's is computed by reading it once more.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::archive::Archive;
use super::error::ArchiveError;
use super::origin::{Opened, Origin};
use super::{PullError, Resolved};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{self, BlobRef, Compression, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest};
use crate::reference::Reference;

const KIND: &str = "an archive of docker save";

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Entry {
    /// The names of the image.
    pub(super) fn repo_tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

/// An archive, and the blobs of those of its images that were resolved, by their digest.
pub(super) struct DockerArchive {
    archive: Archive,
    /// The path in the archive of each blob.
    members: BTreeMap<Digest, String>,
}

impl DockerArchive {
    pub(super) fn new(archive: Archive) -> Self {
        Self { archive, members: BTreeMap::new() }
    }

    /// Where the archive is.
    pub(super) fn path(&self) -> &Path {
        self.archive.path()
    }

    /// All images.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, ArchiveError> {
        let archive = &self.archive;
        let bytes = archive.read_all("manifest.json", MAX_MANIFEST_BYTES)?;
        let bytes = bytes.ok_or_else(|| structure(archive, "it has no manifest.json"))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| structure(archive, &format!("its manifest.json is malformed: {error}")))
    }

    /// The image called `reference`, or the only one.
    pub(super) fn choose(&self, reference: Option<&Reference>) -> Result<Entry, ArchiveError> {
        let mut entries = self.entries()?;
        let wanted = |entry: &Entry| match reference {
            None => true,
            Some(reference) => {
                let mut tags = entry.repo_tags().filter_map(|tag| tag.parse::<Reference>().ok());
                tags.any(|tag| tag == *reference)
            }
        };
        let found: Vec<usize> = (0..entries.len()).filter(|at| wanted(&entries[*at])).collect();
        if let [only] = found.as_slice() {
            return Ok(entries.swap_remove(*only));
        }
        let tags = entries.iter().flat_map(Entry::repo_tags);
        let tags: Vec<String> = tags.take(20).map(|tag| tag.chars().take(200).collect()).collect();
        let available = format!("{} images ({})", entries.len(), tags.join(", "));
        Err(ArchiveError::Choice { path: self.path().to_owned(), available })
    }

    /// Makes the manifest of an image.
    pub(super) fn resolve(&mut self, entry: Entry) -> Result<Resolved, PullError> {
        let archive = &self.archive;
        let image = archive.path().display().to_string();
        let refused = |source| PullError::Manifest { image: image.clone(), source };
        let config = archive.read_all(&entry.config, MAX_CONFIG_BYTES)?;
        let config = config.ok_or_else(|| structure(archive, "its configuration is missing or too large"))?;
        let (_, diff_ids) = manifest::parse_config(&config, entry.layers.len()).map_err(refused)?;
        let config_digest = Digest::of(&config);
        self.members.insert(config_digest.clone(), entry.config);
        let mut layers = Vec::new();
        for (path, diff_id) in entry.layers.into_iter().zip(diff_ids) {
            let layer = describe(archive, &path, diff_id.0)?;
            self.members.insert(layer.digest.clone(), path);
            layers.push(layer);
        }
        let config_type = "application/vnd.oci.image.config.v1+json".to_owned();
        let config = BlobRef { digest: config_digest, size: config.len() as u64, media_type: config_type };
        let bytes = synthesize(&config, &layers);
        let manifest = Manifest::parse(&bytes).map_err(refused)?;
        let digest = Digest::of(&bytes);
        Ok(Resolved { manifest, remote: digest.clone(), digest, bytes })
    }
}

fn describe(archive: &Archive, path: &str, diff_id: Digest) -> Result<BlobRef, ArchiveError> {
    let missing = || structure(archive, "one of its layers is missing");
    let read = |source| ArchiveError::Read { path: archive.path().to_owned(), source };
    let size = archive.size(path).ok_or_else(missing)?;
    let mut head = Vec::new();
    archive.read(path, 0).ok_or_else(missing)?.take(8).read_to_end(&mut head).map_err(read)?;
    let suffix = match Compression::sniff(&head) {
        Compression::None => {
            let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
            return Ok(BlobRef { digest: diff_id, size, media_type });
        }
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    };
    let mut reader = archive.read(path, 0).ok_or_else(missing)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut chunk = vec![0; 256 << 10];
    loop {
        match reader.read(&mut chunk).map_err(read)? {
            0 => break,
            count => hasher.update(&chunk[..count]),
        }
    }
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{suffix}");
    Ok(BlobRef { digest: hasher.finish(), size, media_type })
}

fn synthesize(config: &BlobRef, layers: &[BlobRef]) -> Vec<u8> {
    let descriptor = |blob: &BlobRef| json!({"mediaType": blob.media_type, "digest": blob.digest.to_string(), "size": blob.size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(config),
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

fn structure(archive: &Archive, reason: &str) -> ArchiveError {
    ArchiveError::Structure { path: archive.path().to_owned(), kind: KIND, reason: reason.to_owned() }
}

impl Origin for DockerArchive {
    fn open(&self, blob: &BlobRef, offset: u64) -> Result<Opened, PullError> {
        let path = self.members.get(&blob.digest);
        let reader = path.and_then(|path| self.archive.read(path, offset));
        let reader = reader.ok_or_else(|| structure(&self.archive, "one of its layers is missing"))?;
        Ok(Opened { offset, reader: Box::new(reader) })
    }

    fn read_failed(&self, source: std::io::Error) -> PullError {
        ArchiveError::Read { path: self.archive.path().to_owned(), source }.into()
    }

    fn ended_early(&self, blob: &BlobRef, received: u64) -> PullError {
        let reason = format!("layer {} has {received} bytes, not {}", blob.digest, blob.size);
        structure(&self.archive, &reason).into()
    }
}
