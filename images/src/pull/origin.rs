//! Where blobs come from, and how they get into the store: several at once, resumed, tried again, verified.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use super::PullError;
use crate::manifest::BlobRef;
use crate::parallel;
use crate::progress::{Event, Progress};
use crate::registry::Timing;
use crate::retry::{Retries, Retryable as _};
use crate::store::{Begin, Partial, Store, StoreError};

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// Bytes of a blob on their way.
pub(super) struct Opened {
    /// Where in the blob the first byte belongs: what was asked for, or 0.
    pub offset: u64,
    /// The bytes.
    pub reader: Box<dyn Read + Send>,
}

/// Something that has blobs. Used by several threads at once.
pub(super) trait Origin: Sync {
    /// The bytes of `blob` from `offset` on.
    fn open(&self, blob: &BlobRef, offset: u64) -> Result<Opened, PullError>;

    /// What a failed read from [`Opened::reader`] means.
    fn read_failed(&self, error: std::io::Error) -> PullError;

    /// What it means that [`Opened::reader`] ended after `received` bytes of the blob in all.
    fn ended_early(&self, blob: &BlobRef, received: u64) -> PullError;
}

/// Moves blobs from an origin into the store.
pub(super) struct Transfer<'a> {
    pub store: &'a Store,
    pub origin: &'a dyn Origin,
    pub timing: Timing,
    pub parallel: usize,
    pub progress: &'a dyn Progress,
}

impl Transfer<'_> {
    /// Brings all of `blobs` into the store. The first failure stops the others at their next chunk.
    pub(super) fn all(&self, blobs: &[BlobRef]) -> Result<(), PullError> {
        let mut seen = BTreeSet::new();
        let blobs: Vec<&BlobRef> = blobs.iter().filter(|blob| seen.insert(&blob.digest)).collect();
        self.check_room(&blobs)?;
        parallel::for_each(&blobs, self.parallel, |blob, cancelled| self.one(blob, cancelled))
    }

    fn one(&self, blob: &BlobRef, cancelled: &AtomicBool) -> Result<(), PullError> {
        let digest = &blob.digest;
        let mut partial = match self.store.blobs.begin(digest, blob.size, self.progress)? {
            Begin::Present => {
                self.progress.event(Event::LayerCached { digest });
                return Ok(());
            }
            Begin::Partial(partial) => partial,
        };
        let resumed_at = partial.position();
        self.progress.event(Event::LayerStarted { digest, size: blob.size, resumed_at });
        let mut retries = Retries::new(self.timing);
        // What an earlier pull left may be damaged by a power cut; then one more try starts at the beginning.
        let mut suspicious = resumed_at > 0;
        loop {
            let before = partial.position();
            match self.attempt(blob, &mut partial, cancelled) {
                Ok(()) => {
                    self.progress.event(Event::LayerDone { digest });
                    return Ok(());
                }
                Err(PullError::Store(StoreError::DigestMismatch { .. })) if suspicious => suspicious = false,
                Err(error) if error.is_transient() && !cancelled.load(Ordering::Relaxed) => {
                    if partial.position() > before {
                        retries = Retries::new(self.timing);
                    }
                    retries.pause(error, &format!("layer {}", digest.short()), self.progress)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn attempt(
        &self,
        blob: &BlobRef,
        partial: &mut Partial,
        cancelled: &AtomicBool,
    ) -> Result<(), PullError> {
        if partial.position() < blob.size {
            let mut opened = self.origin.open(blob, partial.position())?;
            if opened.offset != partial.position() {
                partial.restart()?;
            }
            self.copy(blob, &mut opened.reader, partial, cancelled)?;
        }
        if partial.position() < blob.size {
            return Err(self.origin.ended_early(blob, partial.position()));
        }
        Ok(partial.commit()?)
    }

    fn copy(
        &self,
        blob: &BlobRef,
        reader: &mut dyn Read,
        partial: &mut Partial,
        cancelled: &AtomicBool,
    ) -> Result<(), PullError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(PullError::Cancelled);
            }
            let count = match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.origin.read_failed(error)),
            };
            partial.write(&chunk[..count])?;
            self.progress.event(Event::LayerBytes { digest: &blob.digest, position: partial.position() });
        }
    }

    /// Refuses what cannot fit before anything is fetched.
    fn check_room(&self, blobs: &[&BlobRef]) -> Result<(), StoreError> {
        let missing = blobs.iter().filter(|blob| !self.store.blobs.has(&blob.digest, blob.size));
        let needed = missing.fold(0u64, |sum, blob| sum.saturating_add(blob.size));
        // The root itself may be none of our business.
        let root = &self.store.blobs.partial_dir();
        let space = rustix::fs::statvfs(root)
            .map_err(|error| StoreError::file("stat the disk of", root, error.into()))?;
        let available = space.f_bavail.saturating_mul(space.f_frsize);
        if needed > available {
            return Err(StoreError::NoRoom { path: root.clone(), needed, available });
        }
        Ok(())
    }
}
