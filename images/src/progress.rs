//! What a pull tells the outside while it runs. The command line draws bars from it; tests count it.

use std::path::Path;

use crate::digest::Digest;

/// One step of a pull or of building a root filesystem.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The name is being turned into a manifest.
    Resolving {
        /// The image's name.
        image: &'a str,
    },
    /// The manifest is there; its layers come next.
    Resolved {
        /// The manifest of this platform.
        manifest: &'a Digest,
        /// How many layers the image has.
        layers: usize,
        /// The sum of their sizes in bytes, as stored.
        bytes: u64,
    },
    /// A layer is in the store already.
    LayerCached {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// Another process is fetching this layer; its result will be used.
    LayerWaiting {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// A layer's transfer begins, or goes on after a break.
    LayerStarted {
        /// The layer's blob.
        digest: &'a Digest,
        /// Its size in bytes.
        size: u64,
        /// How many of them an earlier, broken pull has left.
        resumed_at: u64,
    },
    /// A layer has grown. Sent often; draw at your own rate.
    LayerBytes {
        /// The layer's blob.
        digest: &'a Digest,
        /// How many bytes are there now.
        position: u64,
    },
    /// A layer is verified and in the store.
    LayerDone {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// Something failed that may pass; it is tried again.
    Retrying {
        /// What is tried again.
        what: &'a str,
        /// Why it failed.
        reason: &'a str,
        /// The number of the next attempt; the first was 1.
        attempt: u32,
    },
    /// The root filesystem is being built. Sent every few megabytes; not at all if it is there already.
    RootfsBytes {
        /// Uncompressed bytes so far.
        position: u64,
    },
    /// The root filesystem is written.
    RootfsDone {
        /// The size of its file in bytes.
        size: u64,
    },
    /// A file of a `dir:PATH` image may not be read by this user and is left out.
    RootfsUnreadable {
        /// The file.
        path: &'a Path,
    },
}

/// Takes the events of a pull. Called from several threads at once; must return quickly and must not panic.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: Event<'_>) {}
}
