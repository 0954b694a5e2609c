//! Files in a registry that are no image: an OCI artifact (image specification 1.1, "Guidelines for Artifact Usage"),
//! one layer for each file, told apart by media types.

use std::io::{self, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::manifest::BlobRef;
use crate::progress::{Event, Progress};
use crate::push::{PushError, PushOptions, Pushed, Sender};
use crate::reference::Reference;
use crate::registry::{Access, Client, RegistryError, RegistryOptions};
use crate::retry::retried;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The configuration of what has none.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const EMPTY_CONTENT: &[u8] = b"{}";
/// Most files. Stops a manifest from filling memory.
const MAX_FILES: usize = 64;

/// A file of an artifact that is pushed.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is.
    pub media_type: String,
    /// Where it is, whole and at rest.
    pub path: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why an artifact did not come.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Between here and the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is something else.
    #[error("{reference} is no {wanted}: {found}")]
    Kind {
        /// What was asked for.
        reference: String,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// What came is not what its manifest says.
    #[error("{reference}: {digest} came damaged: pull it again")]
    Damaged {
        /// What was asked for.
        reference: String,
        /// The blob.
        digest: Digest,
    },
    /// Who takes a file could not.
    #[error("cannot take {media_type}")]
    Take {
        /// The file.
        media_type: String,
        /// Why.
        source: io::Error,
    },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

/// Puts `parts` into the registry as an artifact of type `kind`.
pub fn push(
    reference: &Reference,
    kind: &str,
    parts: &[Part],
    options: &PushOptions,
    progress: &dyn Progress,
) -> Result<Pushed, PushError> {
    let config = BlobRef {
        digest: Digest::of(EMPTY_CONTENT),
        size: EMPTY_CONTENT.len() as u64,
        media_type: EMPTY.to_owned(),
    };
    let describe = |blob: &BlobRef| Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.to_string(),
        size: blob.size,
    };
    let blobs: Vec<BlobRef> = parts
        .iter()
        .map(|part| BlobRef {
            digest: part.digest.clone(),
            size: part.size,
            media_type: part.media_type.clone(),
        })
        .collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        artifact_type: Some(kind.to_owned()),
        config: describe(&config),
        layers: blobs.iter().map(describe).collect(),
    };
    let manifest = serde_json::to_vec(&manifest).expect("invariant: plain data always encodes");
    let digest = Digest::of(&manifest);
    let bytes = blobs.iter().map(|blob| blob.size).sum();
    progress.event(Event::Resolved { manifest: &digest, layers: blobs.len(), bytes });
    let timing = options.registry.timing;
    let access = Access::Push { mount_from: None };
    let client = retried(timing, "the connection", progress, || {
        Client::connect(reference, access.clone(), &options.registry)
    })?;
    let path =
        |digest: &Digest| parts.iter().find(|part| part.digest == *digest).map(|part| part.path.clone());
    let small = |digest: &Digest| match path(digest) {
        Some(path) => std::fs::read(path),
        None => Ok(EMPTY_CONTENT.to_vec()),
    };
    let open = |digest: &Digest| path(digest).unwrap_or_default();
    let sender = Sender::new(&client, options, progress, &open, &small);
    sender.send_all(&blobs, &config)?;
    retried(timing, "the manifest", progress, || {
        client.put_manifest(reference.version(), MANIFEST, &manifest)
    })?;
    Ok(Pushed { name: reference.to_string(), digest, size: manifest.len() as u64, sent: sender.sent() })
}

/// Gets the artifact `reference` of type `kind`: `take` is given the media type of each file and its bytes, whose end
/// is only right if this returns without an error. A broken connection is not gone on with.
pub fn pull(
    reference: &Reference,
    kind: &str,
    options: &RegistryOptions,
    progress: &dyn Progress,
    mut take: impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> Result<Digest, PullError> {
    let timing = options.timing;
    let client =
        retried(timing, "the connection", progress, || Client::connect(reference, Access::Pull, options))?;
    let fetched = retried(timing, "the manifest", progress, || client.manifest(reference.version()))?;
    let blobs = parse(&fetched.bytes, kind).map_err(|found| PullError::Kind {
        reference: reference.to_string(),
        wanted: kind.to_owned(),
        found,
    })?;
    let bytes = blobs.iter().map(|blob| blob.size).sum();
    progress.event(Event::Resolved { manifest: &fetched.digest, layers: blobs.len(), bytes });
    for blob in &blobs {
        let digest = &blob.digest;
        progress.event(Event::LayerStarted { digest, size: blob.size, resumed_at: 0 });
        let stream = retried(timing, "a file", progress, || client.blob(blob, 0))?;
        let mut checked =
            Checked { inner: stream.reader.take(blob.size), hash: Hasher::new(digest.algorithm()) };
        let failed = |source| PullError::Take { media_type: blob.media_type.clone(), source };
        let taken = take(&blob.media_type, &mut checked);
        // Whatever became of what was read: first whether it was right.
        io::copy(&mut checked, &mut io::sink()).map_err(failed)?;
        if checked.hash.finish() != *digest {
            return Err(PullError::Damaged { reference: reference.to_string(), digest: digest.clone() });
        }
        taken.map_err(failed)?;
        progress.event(Event::LayerDone { digest });
    }
    Ok(fetched.digest)
}

/// The files that the manifest of an artifact of type `kind` names; otherwise what is there instead.
fn parse(bytes: &[u8], kind: &str) -> Result<Vec<BlobRef>, String> {
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| format!("its manifest is none of an artifact: {error}"))?;
    if manifest.artifact_type.as_deref() != Some(kind) {
        let other = manifest.artifact_type.unwrap_or(manifest.config.media_type);
        return Err(format!("it is of type {:?}", other.chars().take(200).collect::<String>()));
    }
    if manifest.layers.len() > MAX_FILES {
        return Err(format!("it has {} files", manifest.layers.len()));
    }
    let blob = |descriptor: Descriptor| {
        let digest = descriptor.digest.parse().map_err(|error| format!("a file's digest: {error}"))?;
        Ok(BlobRef { digest, size: descriptor.size, media_type: descriptor.media_type })
    };
    manifest.layers.into_iter().map(blob).collect()
}

/// Hashes what is read.
struct Checked<R> {
    inner: R,
    hash: Hasher,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_artifact_of_the_wanted_type_is_taken() {
        let digest = Digest::of(b"x").to_string();
        let file = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1}}"#);
        let manifest = |kind: &str, files: &[&str]| {
            let files = files.join(",");
            format!(r#"{{"schemaVersion":2,"artifactType":"{kind}","config":{file},"layers":[{files}]}}"#)
        };
        let found = parse(manifest("t/t", &[&file, &file]).as_bytes(), "t/t").unwrap();
        assert_eq!((found.len(), found[0].size, found[0].media_type.as_str()), (2, 1, "a/b"));
        let image = parse(manifest("other/type", &[]).as_bytes(), "t/t").unwrap_err();
        assert!(image.contains("other/type"), "{image}");
        assert!(parse(b"[]", "t/t").is_err());
        assert!(parse(manifest("t/t", &vec![file.as_str(); MAX_FILES + 1]).as_bytes(), "t/t").is_err());
        let bad = file.replace("sha256:", "sha256:..");
        assert!(parse(manifest("t/t", &[&bad]).as_bytes(), "t/t").is_err());
    }
}
