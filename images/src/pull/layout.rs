//! OCI image layouts (image-spec `image-layout.md`), in a directory or in a tar file.

use std::fs::OpenOptions;
use std::io::{Read, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use oci_spec::image::Descriptor;

use super::archive::Archive;
use super::error::ArchiveError;
use super::origin::{Opened, Origin};
use super::{PullError, Resolved};
use crate::digest::{Digest, Hasher};
use crate::manifest::{BlobRef, Document, MAX_MANIFEST_BYTES, ManifestError};
use crate::platform::Platform;

/// The annotation that names an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation by which containerd and Docker name an image in a layout.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// An index may point to an index; more of that is a loop.
const MAX_INDEX_DEPTH: usize = 3;

const KIND: &str = "an OCI image layout";

/// An OCI image layout.
pub(super) struct Layout {
    path: PathBuf,
    files: Files,
}

enum Files {
    Dir,
    Archive(Archive),
}

impl Layout {
    pub(super) fn dir(path: &Path) -> Self {
        Self { path: path.to_owned(), files: Files::Dir }
    }

    pub(super) fn archive(archive: Archive) -> Self {
        Self { path: archive.path().to_owned(), files: Files::Archive(archive) }
    }

    /// Where the layout is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What its index names.
    pub(super) fn entries(&self) -> Result<Vec<Descriptor>, PullError> {
        let index = self.read("index.json")?;
        match Document::parse(&index).map_err(|source| self.refused(source))? {
            Document::Index(entries) => Ok(entries),
            Document::Manifest(_) => Err(self.structure("its index.json is no index").into()),
        }
    }

    /// The manifest of the image called `tag`, or of the only one, for `platform`.
    pub(super) fn resolve(&self, tag: Option<&str>, platform: &Platform) -> Result<Resolved, PullError> {
        let entries = self.entries()?;
        let entry = match tag {
            Some(tag) => self.named(&entries, tag)?,
            None if entries.len() == 1 => &entries[0],
            None => self.only(&entries, platform)?,
        };
        self.follow(entry, platform)
    }

    /// The manifest that an entry leads to.
    pub(super) fn follow(&self, entry: &Descriptor, platform: &Platform) -> Result<Resolved, PullError> {
        let image = self.path.display().to_string();
        let mut entry = entry.clone();
        let mut remote = None;
        for _ in 0..MAX_INDEX_DEPTH {
            let blob = BlobRef::parse("the image index", &entry).map_err(|source| self.refused(source))?;
            let bytes = self.read(&blob_path(&blob.digest))?;
            verify(&blob.digest, &bytes).map_err(|reason| self.structure(&reason))?;
            let remote = remote.get_or_insert_with(|| blob.digest.clone()).clone();
            match Document::parse(&bytes).map_err(|source| self.refused(source))? {
                Document::Manifest(manifest) => {
                    return Ok(Resolved { manifest: *manifest, digest: blob.digest, bytes, remote });
                }
                Document::Index(entries) => entry = super::select(&image, platform, &entries)?.clone(),
            }
        }
        Err(self.refused(ManifestError::Unsupported("an index of indexes for ever".to_owned())))
    }

    /// What it means that no entry is for `platform`.
    pub(super) fn nothing_for(&self, platform: &Platform) -> ArchiveError {
        self.structure(&format!("it holds no image for {platform}"))
    }

    fn refused(&self, source: ManifestError) -> PullError {
        PullError::Manifest { image: self.path.display().to_string(), source }
    }

    fn named<'a>(&self, entries: &'a [Descriptor], tag: &str) -> Result<&'a Descriptor, ArchiveError> {
        entries.iter().find(|entry| name_of(entry) == Some(tag)).ok_or_else(|| self.choice(entries))
    }

    /// Without a name: the entry for the platform, if all entries are one image's platforms.
    fn only<'a>(
        &self,
        entries: &'a [Descriptor],
        platform: &Platform,
    ) -> Result<&'a Descriptor, ArchiveError> {
        let one_image = entries.iter().all(|entry| entry.platform().is_some() && name_of(entry).is_none());
        let found = if one_image { platform.select(entries) } else { None };
        found.ok_or_else(|| self.choice(entries))
    }

    fn choice(&self, entries: &[Descriptor]) -> ArchiveError {
        let names: Vec<&str> = entries.iter().filter_map(name_of).take(20).collect();
        let available = match names.as_slice() {
            [] => format!("{} images without names", entries.len()),
            names => format!("the images {}", names.join(", ")),
        };
        ArchiveError::Choice { path: self.path.clone(), available }
    }

    /// A small file of the layout.
    fn read(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let missing =
            || self.structure(&format!("it has no file {name} of at most {MAX_MANIFEST_BYTES} bytes"));
        match &self.files {
            Files::Archive(archive) => archive.read_all(name, MAX_MANIFEST_BYTES)?.ok_or_else(missing),
            Files::Dir => {
                let mut bytes = Vec::new();
                let file = self.open_file(name)?;
                file.take(MAX_MANIFEST_BYTES + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|source| ArchiveError::Read { path: self.path.join(name), source })?;
                if bytes.len() as u64 > MAX_MANIFEST_BYTES { Err(missing()) } else { Ok(bytes) }
            }
        }
    }

    /// Opens a regular file of a directory; a FIFO put there must not hang the import.
    fn open_file(&self, name: &str) -> Result<std::fs::File, ArchiveError> {
        let path = self.path.join(name);
        let failed = |source| ArchiveError::Read { path: path.clone(), source };
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(&path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(self.structure(&format!("{name} is not a regular file")));
        }
        Ok(file)
    }

    fn structure(&self, reason: &str) -> ArchiveError {
        ArchiveError::Structure { path: self.path.clone(), kind: KIND, reason: reason.to_owned() }
    }
}

impl Origin for Layout {
    fn open(&self, blob: &BlobRef, offset: u64) -> Result<Opened, PullError> {
        let name = blob_path(&blob.digest);
        let reader: Box<dyn Read + Send> = match &self.files {
            Files::Archive(archive) => {
                let missing = || self.structure(&format!("it lacks {name}"));
                Box::new(archive.read(&name, offset).ok_or_else(missing)?)
            }
            Files::Dir => {
                let mut file = self.open_file(&name)?;
                file.seek(SeekFrom::Start(offset)).map_err(|error| self.read_failed(error))?;
                Box::new(file)
            }
        };
        Ok(Opened { offset, reader })
    }

    fn read_failed(&self, source: std::io::Error) -> PullError {
        ArchiveError::Read { path: self.path.clone(), source }.into()
    }

    fn ended_early(&self, blob: &BlobRef, received: u64) -> PullError {
        let digest = &blob.digest;
        self.structure(&format!("it has {received} bytes of {digest}, not {}", blob.size)).into()
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// A whole reference that an entry is named by. A tag alone, which the specification allows too, names no image.
pub(super) fn full_name(entry: &Descriptor) -> Option<&str> {
    let containerd =
        entry.annotations().as_ref().and_then(|all| all.get(CONTAINERD_NAME)).map(String::as_str);
    containerd.or_else(|| name_of(entry).filter(|name| name.contains(['/', ':'])))
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

fn verify(digest: &Digest, bytes: &[u8]) -> Result<(), String> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *digest { Ok(()) } else { Err(format!("the content of {digest} has digest {actual}")) }
}
