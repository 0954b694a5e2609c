//! An image's root filesystem: one read-only EROFS file, built once and shared by every container of the image.
//!
//! ```text
//! layers ──► unpack ─┐
//! dir:PATH ► walk ───┴► Tree + DataWriter ─► write_image ─► rootfs/KEY.erofs.partial ─► fsync ─► rootfs/KEY.erofs
//! ```
//!
//! The key of layers is their chain ID with [`FORMAT_VERSION`]. A directory may change at any time, so it is walked
//! anew each time and the key is the hash of the finished image: an unchanged directory gives the same file again.
//!
//! A file under its final name is whole and on the disk. While it is written it is called `…partial` and locked, so
//! two processes build it once, and whatever a crash left behind is recognised by its free lock and removed.

mod directory;
mod publish;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::{Algorithm, ChainId, Digest, Hasher};
use crate::erofs::{self, DataWriter, ImageOptions, write_image};
use crate::image::{Contents, Image, Layer};
use crate::progress::{Event, Progress};
use crate::store::{Store, StoreError};
use crate::unpack::{self, Limits, UnpackError, unpack};

/// Changes whenever the same layers would give other bytes, so that older caches are not used.
pub const FORMAT_VERSION: u32 = 1;

/// Uncompressed bytes between two progress events.
const PROGRESS_STEP: u64 = 4 << 20;

/// Why there is no root filesystem.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A layer is malformed, malicious or over a limit.
    #[error("cannot unpack the image {image}")]
    Unpack {
        /// The image's name.
        image: String,
        /// Which layer and entry, and why.
        #[source]
        source: UnpackError,
    },
    /// The image file could not be completed.
    #[error("cannot build the root file system {}", path.display())]
    Write {
        /// The file being written.
        path: PathBuf,
        /// Why.
        #[source]
        source: erofs::Error,
    },
    /// A file operation of ours failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The process that unpacked it failed.
    #[error("{0}")]
    Elsewhere(String),
    /// The content store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RootfsError {
    fn file(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File { action, path: path.to_owned(), source: source.into() }
    }
}

/// The root filesystem of `image`, built if it is not there yet. Blocks until it is whole; safe to call from several
/// processes at once. Removes what crashed builds have left.
///
/// The path stays valid while `image` lives.
pub fn ensure_rootfs(store: &Store, image: &Image, progress: &dyn Progress) -> Result<PathBuf, RootfsError> {
    ensure_rootfs_by(store, image, progress, &|file, at, chain_id, layers| {
        let sources = layers.iter().map(open_layer).collect::<Result<_, _>>()?;
        build_from_layers(file, at, &image.name, chain_id, sources, &Limits::default(), progress)
    })
}

/// Writes the root filesystem of layers, lowest first, to the empty file, which errors call by the path.
pub type Build<'a> = dyn Fn(&mut File, &Path, &ChainId, &[Layer]) -> Result<(), RootfsError> + 'a;

/// As [`ensure_rootfs`]; what has layers is built by `build`.
pub fn ensure_rootfs_by(
    store: &Store,
    image: &Image,
    progress: &dyn Progress,
    build: &Build<'_>,
) -> Result<PathBuf, RootfsError> {
    let dir = store.rootfs_dir();
    publish::sweep(&dir);
    match &image.contents {
        Contents::Layers { chain_id, layers } => {
            let path = dir.join(format!("{}-v{FORMAT_VERSION}.erofs", chain_id.0.hex()));
            publish::build_once(&path, |file, at| build(file, at, chain_id, layers))?;
            Ok(path)
        }
        Contents::Directory(source) => {
            let path = dir.join(format!("dir-{}-{}.erofs", std::process::id(), short_id(source)));
            publish::build_then_name(&path, |file, at| {
                directory::build(file, at, source, progress)?;
                let digest = hash(file).map_err(|error| RootfsError::file("read", at, error))?;
                Ok(dir.join(format!("dir-{}-v{FORMAT_VERSION}.erofs", digest.hex())))
            })
        }
    }
}

/// Writes the root filesystem of `sources`, lowest layer first, to the empty `file`, which errors call `path`.
pub fn build_from_layers(
    file: &mut File,
    path: &Path,
    image: &str,
    chain_id: &ChainId,
    sources: Vec<unpack::Layer>,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<(), RootfsError> {
    let mut data = DataWriter::new(file);
    let mut told = 0;
    let mut tell = |position| {
        if position >= told + PROGRESS_STEP {
            told = position;
            progress.event(Event::RootfsBytes { position });
        }
    };
    let mut tree = unpack(sources, &mut data, limits, &mut tell)
        .map_err(|source| RootfsError::Unpack { image: image.to_owned(), source })?;
    let write_error = |source| RootfsError::Write { path: path.to_owned(), source };
    let size =
        write_image(&mut tree, data, ImageOptions { uuid: uuid_of(&chain_id.0) }).map_err(write_error)?;
    progress.event(Event::RootfsDone { size });
    Ok(())
}

/// A layer of the store, to be unpacked.
pub fn open_layer(layer: &Layer) -> Result<unpack::Layer, RootfsError> {
    let file = File::open(layer.path())
        .map_err(|source| RootfsError::file("open the layer", layer.path(), source))?;
    Ok(unpack::Layer {
        name: layer.digest.to_string(),
        diff_id: layer.diff_id.clone(),
        source: Box::new(file),
    })
}

/// The first 16 bytes of `digest`, so that a file system's UUID follows from its content.
fn uuid_of(digest: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).ok();
        *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or_default();
    }
    uuid
}

fn short_id(path: &Path) -> String {
    Digest::of(path.as_os_str().as_encoded_bytes()).short().to_owned()
}

fn hash(file: &mut File) -> io::Result<Digest> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_is_the_start_of_the_digest() {
        let digest = Digest::of(b"");
        assert_eq!(uuid_of(&digest)[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
