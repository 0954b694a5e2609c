//! A blob on its way into the store.
//!
//! ```text
//! begin ──► Present                                   (it is there, or another process just finished it)
//!   └─────► Partial ── write … ──► commit ──► blobs/ALGORITHM/HEX
//!              ▲  └── restart: from byte 0            (verified, synced, renamed)
//!              └── what an earlier, broken pull left is hashed and kept
//! ```
//!
//! Whoever writes `partial/ALGORITHM-HEX` holds an exclusive flock on it, so two pulls never fetch one blob twice and
//! a crash leaves a file that the next pull goes on with.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::blobs::{Blobs, sync_dir};
use super::{StoreError, lock};
use crate::digest::{Digest, Hasher};
use crate::progress::{Event, Progress};

/// Bytes read at once when an earlier part is hashed.
const REHASH_CHUNK: usize = 256 << 10;

/// Whether a blob still has to be written.
pub(crate) enum Begin {
    /// It is in the store.
    Present,
    /// The caller now owns its partial file.
    Partial(Box<Partial>),
}

/// A blob that is being written. Dropped without [`Partial::commit`] it stays for the next pull to go on with.
pub(crate) struct Partial {
    blobs: Blobs,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    position: u64,
}

impl Blobs {
    /// Starts, or goes on with, writing the blob `digest` of `size` bytes. Waits while another process writes it.
    pub(crate) fn begin(
        &self,
        digest: &Digest,
        size: u64,
        progress: &dyn Progress,
    ) -> Result<Begin, StoreError> {
        let path = self.partial_dir().join(format!("{}-{}", digest.algorithm().name(), digest.hex()));
        loop {
            if self.has(digest, size) {
                return Ok(Begin::Present);
            }
            let file = open_locked(&path, || progress.event(Event::LayerWaiting { digest }))?;
            // While this waited for the lock, its holder may have renamed or removed the file.
            if !is_at(&file, &path) {
                continue;
            }
            let hasher = Hasher::new(digest.algorithm());
            let blobs = self.clone();
            let mut partial =
                Partial { blobs, digest: digest.clone(), size, path, file, hasher, position: 0 };
            partial.take_over()?;
            return Ok(Begin::Partial(Box::new(partial)));
        }
    }
}

impl Partial {
    /// How many bytes are there: where to go on.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Appends the next bytes. More than the blob's size is refused.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let position = self.position.saturating_add(bytes.len() as u64);
        if position > self.size {
            return Err(self.size_mismatch(position));
        }
        self.file.write_all(bytes).map_err(|source| StoreError::file("write", &self.path, source))?;
        self.hasher.update(bytes);
        self.position = position;
        Ok(())
    }

    /// Throws away what is there.
    pub(crate) fn restart(&mut self) -> Result<(), StoreError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|source| StoreError::file("truncate", &self.path, source))?;
        self.hasher = Hasher::new(self.digest.algorithm());
        self.position = 0;
        Ok(())
    }

    /// Verifies size and digest and puts the blob in its place. On a mismatch what was written is thrown away.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        if self.position != self.size {
            return Err(self.size_mismatch(self.position));
        }
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.digest.algorithm()));
        let actual = hasher.finish();
        if actual != self.digest {
            self.restart()?;
            return Err(StoreError::DigestMismatch { expected: self.digest.clone(), actual });
        }
        self.file.sync_all().map_err(|source| StoreError::file("sync", &self.path, source))?;
        let blob = self.blobs.path(&self.digest);
        std::fs::rename(&self.path, &blob).map_err(|source| StoreError::file("rename to", &blob, source))?;
        sync_dir(&self.blobs.algorithm_dir(self.digest.algorithm()))
    }

    /// Hashes what an earlier pull left. Its end may be lost after a power cut; then [`Partial::commit`] notices.
    fn take_over(&mut self) -> Result<(), StoreError> {
        let read = |source| StoreError::file("read", &self.path, source);
        let left = self.file.metadata().map_err(read)?.len();
        if left > self.size {
            return self.restart();
        }
        let mut chunk = vec![0; REHASH_CHUNK];
        loop {
            let count = self.file.read(&mut chunk).map_err(read)?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&chunk[..count]);
            self.position += count as u64;
        }
    }

    fn size_mismatch(&self, actual: u64) -> StoreError {
        StoreError::SizeMismatch { digest: self.digest.clone(), expected: self.size, actual }
    }
}

fn open_locked(path: &Path, waiting: impl FnOnce()) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|source| StoreError::file("open", path, source))?;
    let locked = lock::try_lock(&file).and_then(|locked| {
        if locked {
            return Ok(());
        }
        waiting();
        lock::retry(|| file.lock())
    });
    locked.map_err(|source| StoreError::file("lock", path, source))?;
    Ok(file)
}

/// Whether `path` is still this file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        (dir, blobs)
    }

    fn begin(blobs: &Blobs, content: &[u8]) -> Box<Partial> {
        match blobs.begin(&Digest::of(content), content.len() as u64, &Silent).unwrap() {
            Begin::Partial(partial) => partial,
            Begin::Present => panic!("the blob is there already"),
        }
    }

    #[test]
    fn a_blob_appears_only_when_it_is_whole() {
        let (_dir, blobs) = blobs();
        let digest = Digest::of(b"content");
        let mut partial = begin(&blobs, b"content");
        partial.write(b"cont").unwrap();
        assert!(matches!(partial.commit(), Err(StoreError::SizeMismatch { actual: 4, .. })));
        assert!(!blobs.path(&digest).exists());
        partial.write(b"ent").unwrap();
        partial.commit().unwrap();
        assert_eq!(blobs.read(&digest, 100).unwrap(), b"content");
        assert!(matches!(blobs.begin(&digest, 7, &Silent).unwrap(), Begin::Present));
        assert_eq!(std::fs::read_dir(blobs.partial_dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_broken_write_goes_on_where_it_stopped() {
        let (_dir, blobs) = blobs();
        begin(&blobs, b"content").write(b"con").unwrap();
        let mut partial = begin(&blobs, b"content");
        assert_eq!(partial.position(), 3);
        partial.write(b"tent").unwrap();
        partial.commit().unwrap();
    }

    #[test]
    fn wrong_content_is_thrown_away() {
        let (_dir, blobs) = blobs();
        let mut partial = begin(&blobs, b"content");
        partial.write(b"CONTENT").unwrap();
        assert!(matches!(partial.commit(), Err(StoreError::DigestMismatch { .. })));
        assert_eq!(partial.position(), 0);
        assert!(!blobs.path(&Digest::of(b"content")).exists());
    }

    #[test]
    fn more_than_the_size_is_refused_and_a_too_long_rest_dropped() {
        let (_dir, blobs) = blobs();
        let mut partial = begin(&blobs, b"content");
        assert!(matches!(partial.write(b"contents"), Err(StoreError::SizeMismatch { .. })));
        std::fs::write(&partial.path, b"longer than it").unwrap();
        drop(partial);
        assert_eq!(begin(&blobs, b"content").position(), 0);
    }

    #[test]
    fn two_writers_of_one_blob_write_it_once() {
        let (_dir, blobs) = blobs();
        let content = b"shared";
        let mut first = begin(&blobs, content);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| blobs.begin(&Digest::of(content), 6, &Silent).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
            first.write(content).unwrap();
            first.commit().unwrap();
            drop(first);
            assert!(matches!(second.join().unwrap(), Begin::Present));
        });
    }
}
