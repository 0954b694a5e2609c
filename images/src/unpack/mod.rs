//! From layers to one tree: decompresses tar streams, applies them from the lowest up, streams file data to the image.
//!
//! ```text
//! layer n   ─► decompress (thread) ─► hash ─► TarReader ─► Merge ─► Tree
//! layer n+1 ─► decompress (thread, up to 32 MiB ahead)       └────► DataWriter
//! ```
//!
//! Nothing touches the host's file system but the image, so no name in a layer can lead anywhere else, and owners,
//! modes and device nodes need no privilege. An image is hostile until proved otherwise: see [`limits`].

pub mod limits;
mod merge;
mod number;
mod path;
mod pax;
mod resolve;
mod sparse;
mod stream;
mod tar;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::Read;

pub use self::limits::Limits;
pub use self::merge::EntryError;
pub use self::path::PathError;
pub(crate) use self::pax::allowed_xattr;
pub use self::tar::TarError;

use self::limits::MAX_LAYERS;
use self::merge::Merge;
use self::stream::Stream;
use self::tar::{TarReader, stream_error};
use crate::digest::DiffId;
use crate::erofs::{DataWriter, Output, Tree};

/// Layers being decompressed at a time: the one applied and the next.
const LAYERS_IN_FLIGHT: usize = 2;

/// A layer to unpack.
pub struct Layer {
    /// What errors call it, such as its blob's digest.
    pub name: String,
    /// The digest that its uncompressed bytes must have.
    pub diff_id: DiffId,
    /// Its bytes: a tar archive, plain or compressed with gzip or zstd.
    pub source: Box<dyn Read + Send>,
}

/// Why the layers could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry, or the archive around it.
    #[error("layer {layer}: entry {entry:?}")]
    Entry {
        /// The layer's name.
        layer: String,
        /// The entry's path, cut to 200 bytes; empty before the first.
        entry: String,
        /// What is wrong.
        #[source]
        source: Box<EntryError>,
    },
    /// Not the bytes that the image's configuration names.
    #[error(
        "layer {layer} unpacks to {actual}, but the image's configuration says {expected}: pull the image again"
    )]
    DiffId {
        /// The layer's name.
        layer: String,
        /// What the configuration says.
        expected: DiffId,
        /// What came.
        actual: DiffId,
    },
    /// More than [`MAX_LAYERS`].
    #[error("the image has {0} layers, more than the limit of {MAX_LAYERS}")]
    Layers(usize),
    /// No thread to decompress with.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Unpacks `layers`, lowest first, into a tree whose larger files' data goes to `data`.
///
/// `progress` is told the uncompressed bytes applied so far, many times a second. After an error the tree and what
/// was written are of no use.
pub fn unpack<O: Output>(
    layers: Vec<Layer>,
    data: &mut DataWriter<'_, O>,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<Tree, UnpackError> {
    if layers.len() > MAX_LAYERS {
        return Err(UnpackError::Layers(layers.len()));
    }
    let mut merge = Merge::new(limits);
    let mut waiting = layers.into_iter();
    let mut started = VecDeque::new();
    let mut unpacked = 0;
    loop {
        while started.len() < LAYERS_IN_FLIGHT
            && let Some(layer) = waiting.next()
        {
            let stream =
                Stream::start(layer.source, layer.diff_id.0.algorithm()).map_err(UnpackError::Thread)?;
            started.push_back((layer.name, layer.diff_id, stream));
        }
        let Some((name, diff_id, mut stream)) = started.pop_front() else { return Ok(merge.tree) };
        stream.set_limit(limits.unpacked_bytes - unpacked);
        merge.begin_layer();
        let mut applied = |taken| progress(unpacked + taken);
        unpacked += apply_layer(name, diff_id, stream, &mut merge, data, limits, &mut applied)?;
    }
}

/// Applies one layer; returns how many bytes it had.
fn apply_layer<O: Output>(
    layer: String,
    expected: DiffId,
    stream: Stream,
    merge: &mut Merge<'_>,
    data: &mut DataWriter<'_, O>,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, UnpackError> {
    let mut reader = TarReader::new(stream, limits.unpacked_bytes);
    let entry_error = |layer: &str, path: &[u8], source: EntryError| {
        let entry = path[..path.len().min(200)].escape_ascii().to_string();
        UnpackError::Entry { layer: layer.to_owned(), entry, source: Box::new(source) }
    };
    loop {
        let result = match reader.next() {
            Ok(None) => break,
            Ok(Some(entry)) => merge.apply(entry, &mut reader, data),
            Err(error) => Err(error.into()),
        };
        result.map_err(|error| entry_error(&layer, reader.current(), error))?;
        progress(reader.taken());
    }
    let path = reader.current().to_vec();
    let (size, digest) = reader
        .into_stream()
        .finish()
        .map_err(|error| entry_error(&layer, &path, stream_error(error, limits.unpacked_bytes).into()))?;
    progress(size);
    let actual = DiffId(digest);
    if actual != expected {
        return Err(UnpackError::DiffId { layer, expected, actual });
    }
    Ok(size)
}
