//! Writing images of the store to one archive: `lighter save`.
//!
//! Both kinds are an OCI image layout in a tar file; a *docker-archive* has a `manifest.json` beside it, as Docker
//! writes it since version 25 and as every version reads it. Layers stay as they are stored, so digests stay too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::image::Image;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::reference::{Reference, Version};
use crate::source::ImageSource;
use crate::store::{Store, StoreError};

/// What kind of archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveKind {
    /// What `docker load` reads.
    #[default]
    Docker,
    /// An OCI image layout alone.
    Oci,
}

/// Why an archive was not written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// In the content store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory has no layers that could be saved.
    #[error("{0} is a directory, not an image: there are no layers to save")]
    Directory(String),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// Its file cannot be made.
    #[error("cannot make the archive {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Store {
    /// Writes the images called `names` to `out`, each under the name it was asked by. Blobs that several share are
    /// written once.
    pub fn save(&self, names: &[String], kind: ArchiveKind, out: &mut dyn Write) -> Result<(), SaveError> {
        let images = names.iter().map(|name| self.image(name)).collect::<Result<Vec<_>, _>>()?;
        let mut archive = Archive { store: self, tar: tar::Builder::new(out), written: BTreeSet::new() };
        let (mut index, mut docker) = (Vec::new(), Vec::new());
        for image in &images {
            if image.chain_id().is_none() {
                return Err(SaveError::Directory(image.name.clone()));
            }
            let name = saved_name(image);
            index.push(archive.add(image, name.as_ref())?);
            add_docker(&mut docker, image, name.as_ref());
        }
        archive.small("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index,
        });
        archive.small("index.json", index.to_string().as_bytes())?;
        if kind == ArchiveKind::Docker {
            archive.small("manifest.json", Value::Array(docker).to_string().as_bytes())?;
        }
        archive.tar.into_inner().and_then(Write::flush).map_err(SaveError::Write)
    }
}

impl Store {
    /// Writes the images called `names` to the file `path`, which is there whole or stays as it was.
    pub fn save_file(&self, names: &[String], kind: ArchiveKind, path: &Path) -> Result<(), SaveError> {
        let failed = |source| SaveError::Create { path: path.to_owned(), source };
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            let mut device = File::options().write(true).open(path).map_err(failed)?;
            return self.save(names, kind, &mut device);
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".lighter-save-").tempfile_in(dir).map_err(failed)?;
        self.save(names, kind, &mut file)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// The name to give an image in an archive: its own, unless it is a path, a digest, or an ID that nobody chose.
fn saved_name(image: &Image) -> Option<Reference> {
    let Ok(ImageSource::Registry(reference)) = image.name.parse() else { return None };
    let by_id = matches!(reference.version(), Version::Tag(tag) if *tag == image.config_digest.hex());
    (matches!(reference.version(), Version::Tag(_)) && !by_id).then_some(reference)
}

/// One entry an image in `manifest.json`, with all its names.
fn add_docker(entries: &mut Vec<Value>, image: &Image, name: Option<&Reference>) {
    let config = blob_path(&image.config_digest);
    let tags = name.map(Reference::familiar);
    let known = entries.iter_mut().find(|entry| entry.get("Config") == Some(&json!(config)));
    if let Some(Value::Array(names)) = known.and_then(|entry| entry.get_mut("RepoTags")) {
        names.extend(tags.map(Value::String));
        return;
    }
    let layers: Vec<String> = image.layers().iter().map(|layer| blob_path(&layer.digest)).collect();
    let tags: Vec<String> = tags.into_iter().collect();
    entries.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
}

/// An archive on its way out.
struct Archive<'a> {
    store: &'a Store,
    tar: tar::Builder<&'a mut dyn Write>,
    written: BTreeSet<Digest>,
}

impl Archive<'_> {
    /// Writes the blobs of an image; gives its entry in the index.
    fn add(&mut self, image: &Image, name: Option<&Reference>) -> Result<Value, SaveError> {
        let digest = &image.manifest_digest;
        let bytes = self.store.blobs.read(digest, MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&bytes)
            .map_err(|source| StoreError::Manifest { name: image.name.clone(), source })?;
        for blob in manifest.blobs() {
            self.blob(&blob.digest, blob.size)?;
        }
        self.blob(digest, bytes.len() as u64)?;
        let media_type = crate::push::media_type(&bytes, &manifest);
        let mut entry = json!({
            "mediaType": media_type, "digest": digest, "size": bytes.len(),
            "platform": {"os": image.config.os(), "architecture": image.config.architecture()},
        });
        if let (Some(name), Some(entry)) = (name, entry.as_object_mut()) {
            // The first is the specification's, the second is what containerd and Docker go by.
            let annotations = json!({
                "org.opencontainers.image.ref.name": name.to_string(),
                "io.containerd.image.name": name.to_string(),
            });
            entry.insert("annotations".into(), annotations);
        }
        Ok(entry)
    }

    fn blob(&mut self, digest: &Digest, size: u64) -> Result<(), SaveError> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        let path = self.store.blobs.path(digest);
        let file = File::open(&path).map_err(|source| StoreError::file("open", &path, source))?;
        self.file(&blob_path(digest), size, &mut file.take(size))
    }

    fn small(&mut self, name: &str, bytes: &[u8]) -> Result<(), SaveError> {
        self.file(name, bytes.len() as u64, &mut &*bytes)
    }

    /// Nothing but the name and the content counts, so the same images give the same archive.
    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), SaveError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        self.tar.append_data(&mut header, name, content).map_err(SaveError::Write)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
