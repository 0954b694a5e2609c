//! A snapshot in a registry: an OCI artifact with one layer for each of its files, compressed with zstd and without
//! holes, as in an [archive](super::archive). A file that the registry has already, such as an image's root filesystem,
//! is not sent again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use images::artifact::{self, Part, PullError};
use images::digest::{Algorithm, Hasher};
use images::progress::Progress;
use images::push::{PushError, PushOptions, Pushed};
use images::reference::Reference;
use images::registry::RegistryOptions;

use super::archive::{Extents, LEVEL, Layout, files};
use super::store::Draft;
use super::{DISK, MACHINE, Manifest, SnapshotError, SnapshotStore, file};

/// Type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.lighter.snapshot.v1";

/// Why a snapshot did not go to a registry, or come from there.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// On this side.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Sending.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Receiving.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Not all of it is there.
    #[error("the artifact lacks the snapshot's {}", .0.display())]
    Lacks(PathBuf),
}

/// Puts the snapshot in `directory` into a registry.
pub fn push(
    store: &SnapshotStore,
    directory: &Path,
    reference: &Reference,
    options: &PushOptions,
    progress: &dyn Progress,
) -> Result<Pushed, RemoteError> {
    // The compressed files; gone when this returns.
    let draft = store.draft()?;
    let mut parts = Vec::new();
    for (name, always) in files() {
        let source = directory.join(&name);
        if !always && !source.exists() {
            continue;
        }
        let target = draft.directory().join(parts.len().to_string());
        parts.push(compress(&source, target, media_type(&name)).map_err(file("compress", &source))?);
    }
    Ok(artifact::push(reference, ARTIFACT_TYPE, &parts, options, progress)?)
}

/// Gets a snapshot out of a registry, as a draft of `store`.
pub fn pull(
    store: &SnapshotStore,
    reference: &Reference,
    options: &RegistryOptions,
    progress: &dyn Progress,
) -> Result<Draft, RemoteError> {
    let draft = store.draft()?;
    let directory = draft.directory();
    std::fs::create_dir(directory.join(MACHINE)).map_err(file("make", directory))?;
    let known: Vec<_> = files().into_iter().map(|(name, always)| (media_type(&name), name, always)).collect();
    let mut found = BTreeSet::new();
    artifact::pull(reference, ARTIFACT_TYPE, options, progress, |kind, content| {
        let place = known.iter().find(|(known, ..)| known == kind);
        let (_, name, _) = place.ok_or_else(|| io::Error::other("it has no place in a snapshot"))?;
        extract(content, &directory.join(name))?;
        found.insert(name.clone());
        Ok(())
    })?;
    if let Some((_, name, _)) = known.into_iter().find(|(_, name, always)| *always && !found.contains(name)) {
        return Err(RemoteError::Lacks(name));
    }
    Manifest::read(directory)?;
    Ok(draft)
}

/// The media type of the snapshot's file `name`.
fn media_type(name: &Path) -> String {
    let stem = if name == Path::new(DISK) {
        "disk"
    } else {
        name.file_stem().and_then(|stem| stem.to_str()).unwrap_or("")
    };
    format!("application/vnd.lighter.snapshot.{stem}.v1+zstd")
}

fn compress(source: &Path, target: PathBuf, media_type: String) -> io::Result<Part> {
    let source = File::open(source)?;
    let layout = Layout::of(&source)?;
    let out = File::options().write(true).create_new(true).mode(0o600).open(&target)?;
    let out = Measured {
        inner: BufWriter::with_capacity(1 << 20, out),
        hash: Hasher::new(Algorithm::Sha256),
        size: 0,
    };
    let mut encoder = zstd::Encoder::new(out, LEVEL)?;
    serde_json::to_writer(&mut encoder, &layout)?;
    encoder.write_all(b"\n")?;
    io::copy(&mut Extents::new(&source, layout), &mut encoder)?;
    let mut out = encoder.finish()?;
    out.inner.flush()?;
    Ok(Part { media_type, path: target, digest: out.hash.finish(), size: out.size })
}

fn extract(content: &mut dyn Read, target: &Path) -> io::Result<()> {
    // Twice the same file is refused here.
    let target = File::options().write(true).create_new(true).mode(0o600).open(target)?;
    let mut content = BufReader::with_capacity(1 << 20, zstd::Decoder::new(content)?);
    Layout::read(&mut content)?.write(&mut content, &target)
}

/// Hashes and counts what is written.
struct Measured<W> {
    inner: W,
    hash: Hasher,
    size: u64,
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use images::digest::Digest;

    use super::*;

    #[test]
    fn every_file_has_a_type_of_its_own() {
        let types: BTreeSet<_> = files().iter().map(|(name, _)| media_type(name)).collect();
        assert_eq!(types.len(), files().len(), "{types:?}");
    }

    #[test]
    fn a_file_with_holes_comes_back_as_it_was() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        let source = File::create(path("memory")).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"in the middle", 33 << 20).unwrap();
        let part = compress(&path("memory"), path("part"), "a/b".into()).unwrap();
        let bytes = std::fs::read(&part.path).unwrap();
        assert_eq!((part.size, part.digest), (bytes.len() as u64, Digest::of(&bytes)));
        assert!(bytes.len() < 1 << 16, "{} bytes", bytes.len());
        extract(&mut bytes.as_slice(), &path("again")).unwrap();
        assert!(std::fs::read(path("again")).unwrap() == std::fs::read(path("memory")).unwrap());
        assert!(extract(&mut bytes.as_slice(), &path("again")).is_err(), "a file came twice");
        assert!(extract(&mut &bytes[..bytes.len() - 9], &path("cut")).is_err());
    }
}
