//! A tar stream becomes a layer: hashed, compressed, hashed again, and put into the store.

use std::io::{self, Read, Write};

use super::CommitError;
use crate::digest::{Algorithm, DiffId, Digest, Hasher};
use crate::store::{Store, StoreError};
use crate::unpack::limits::MAX_UNPACKED_BYTES;

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// How a new layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerCompression {
    /// Every registry and runtime takes it.
    #[default]
    Gzip,
    /// Smaller and faster; Docker takes it from version 23 on.
    Zstd,
}

/// A layer that is in the store.
pub(super) struct Packed {
    pub digest: Digest,
    pub diff_id: DiffId,
    /// Stored bytes.
    pub size: u64,
    pub media_type: &'static str,
}

/// Stores an uncompressed tar stream as a layer. A stream that fails leaves nothing behind.
pub(super) fn pack(
    store: &Store,
    tar: &mut dyn Read,
    compression: LayerCompression,
) -> Result<Packed, CommitError> {
    let file = store.blobs.temporary()?;
    let path = file.path().to_owned();
    let written = |source| StoreError::file("write", &path, source);
    let mut diff = Hasher::new(Algorithm::Sha256);
    let mut blob = Hashed { file: file.as_file(), hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let media_type = match compression {
        LayerCompression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::default());
            copy(tar, &mut diff, &mut encoder, written)?;
            encoder.finish().map_err(written)?;
            "application/vnd.oci.image.layer.v1.tar+gzip"
        }
        LayerCompression::Zstd => {
            let level = zstd::DEFAULT_COMPRESSION_LEVEL;
            let mut encoder = zstd::stream::write::Encoder::new(&mut blob, level).map_err(written)?;
            copy(tar, &mut diff, &mut encoder, written)?;
            encoder.finish().map_err(written)?;
            "application/vnd.oci.image.layer.v1.tar+zstd"
        }
    };
    let (digest, size) = (blob.hasher.finish(), blob.size);
    if store.blobs.has(&digest, size) {
        return Ok(Packed { digest, diff_id: DiffId(diff.finish()), size, media_type });
    }
    store.blobs.persist(file, &digest)?;
    Ok(Packed { digest, diff_id: DiffId(diff.finish()), size, media_type })
}

fn copy(
    tar: &mut dyn Read,
    diff: &mut Hasher,
    encoder: &mut dyn Write,
    written: impl Fn(io::Error) -> StoreError,
) -> Result<(), CommitError> {
    let mut chunk = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        let count = match tar.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(CommitError::Read(source)),
        };
        total += count as u64;
        if total > MAX_UNPACKED_BYTES {
            return Err(CommitError::TooLarge);
        }
        diff.update(&chunk[..count]);
        encoder.write_all(&chunk[..count]).map_err(&written)?;
    }
}

/// Hashes and counts what is written.
struct Hashed<W> {
    file: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
