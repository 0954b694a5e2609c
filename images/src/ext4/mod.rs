//! A container's writable layer: an empty ext4 file system in a sparse file, made in a few milliseconds.
//!
//! It holds the two directories that overlayfs wants, `upper` and `work`, and a journal as small as the kernel takes
//! (4 MiB), so that mounting is cheap and what was synced survives a power cut. Blocks cost nothing until the guest
//! writes them. Every container gets the same bytes: a file system is told apart by the disk it is on.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mkext4::{FsBuilder, InodeCount, Meta, Options, ROOT, RegionSink};

/// Bytes a container can write unless told otherwise: 10 GiB.
pub const DEFAULT_SIZE: u64 = 10 << 30;

/// The smallest layer made: below this the journal would take most of it.
pub const MIN_SIZE: u64 = 32 << 20;

/// The directory for overlayfs' `upperdir`.
pub const UPPER: &str = "upper";

/// The directory for overlayfs' `workdir`.
pub const WORK: &str = "work";

/// Blocks of 4 KiB, the fewest that Linux accepts as a journal (`JBD2_MIN_JOURNAL_BLOCKS`).
const JOURNAL_BLOCKS: u32 = 1024;

const BLOCK_SIZE: u64 = 4096;

/// Bytes of a block group.
const GROUP_SIZE: u64 = 32_768 * BLOCK_SIZE;

/// A last group smaller than this is left out: it might not hold its own inode table.
const MIN_LAST_GROUP: u64 = 8 << 20;

/// Why there is no writable layer.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// A size that no file system is made for.
    #[error("a writable layer of {size} bytes is too small: it needs at least {MIN_SIZE}")]
    TooSmall {
        /// The size asked for.
        size: u64,
    },
    /// A size that the block numbers cannot reach.
    #[error("cannot lay out a writable layer of {size} bytes")]
    Layout {
        /// The size asked for.
        size: u64,
        /// Why.
        #[source]
        source: mkext4::Error,
    },
    /// The file could not be made or written.
    #[error("cannot create the writable layer {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the new file `path` an empty writable layer of `size` bytes, rounded down by less than 8 MiB.
/// After an error there is no such file, unless it was there before.
pub fn create_writable_layer(path: &Path, size: u64) -> Result<(), Ext4Error> {
    if size < MIN_SIZE {
        return Err(Ext4Error::TooSmall { size });
    }
    let last_group = size % GROUP_SIZE;
    let size = if last_group < MIN_LAST_GROUP { size - last_group } else { size - size % BLOCK_SIZE };
    let layout = layout(size).map_err(|source| Ext4Error::Layout { size, source })?;
    let failed = |source| Ext4Error::Create { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let write = || -> Result<(), mkext4::Error> {
        file.set_len(size)?;
        layout.writer(&mut Sparse(&file))?.finish()?;
        Ok(())
    };
    write().map_err(|error| {
        // The error being returned matters more.
        let _ = std::fs::remove_file(path);
        failed(match error {
            mkext4::Error::Io(source) => source,
            other => io::Error::other(other),
        })
    })
}

fn layout(size: u64) -> Result<mkext4::Layout, mkext4::Error> {
    let mut options = Options::new(size, *b"lighter writable", 0);
    options.reserved_percent = 0;
    options.journal_blocks = Some(JOURNAL_BLOCKS);
    options.inodes = InodeCount::Auto;
    let mut builder = FsBuilder::new(options)?;
    // The root directory of the container is `upper`'s, so this is what its mode shows.
    builder.mkdir(ROOT, UPPER, Meta::new(0o755, 0, 0, (0, 0)))?;
    builder.mkdir(ROOT, WORK, Meta::new(0o755, 0, 0, (0, 0)))?;
    builder.seal()
}

/// A file in which zeros are left as holes.
struct Sparse<'a>(&'a std::fs::File);

impl RegionSink for Sparse<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.0.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_has_both_directories_and_takes_little_space() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("rw.ext4");
        create_writable_layer(&path, 64 << 20).expect("created");
        let image = std::fs::read(&path).expect("readable");
        let fs = mkext4::reader::Fs::open(&image[..]).expect("an ext4 file system");
        for name in [UPPER, WORK] {
            assert!(fs.resolve(&format!("/{name}")).is_ok(), "{name}");
        }
        let metadata = std::fs::metadata(&path).expect("there");
        assert_eq!(metadata.len(), 64 << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < 1 << 20);
    }

    #[test]
    fn a_file_that_is_there_is_not_touched() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("rw.ext4");
        std::fs::write(&path, b"mine").expect("room");
        assert!(matches!(create_writable_layer(&path, MIN_SIZE), Err(Ext4Error::Create { .. })));
        assert_eq!(std::fs::read(&path).expect("readable"), b"mine");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let path = Path::new("/nonexistent/rw.ext4");
        assert!(matches!(create_writable_layer(path, 4096), Err(Ext4Error::TooSmall { .. })));
        assert!(matches!(create_writable_layer(path, 1 << 60), Err(Ext4Error::Layout { .. })));
    }
}
