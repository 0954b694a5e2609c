//! A writer of uncompressed EROFS images, the read-only file system that guests mount.
//!
//! ```text
//! Tree (who is where) ─┐
//!                      ├─► write_image ─► superblock │ file data │ inodes │ directory blocks │ shared xattrs
//! DataWriter (bytes) ──┘                  block 0      1…          meta_blkaddr
//! ```
//!
//! File data is streamed first, while the tree is still being made; metadata follows once it is complete. The same
//! tree and data give the same bytes: nothing here asks for a clock, a random number or a hash map's order.
//!
//! What makes it cheap for a guest to mount and walk: inodes that a path lookup touches (directories, symbolic
//! links) are packed together with their entries, small files sit right behind their inode, and an inode takes
//! 32 bytes where its owner, size and time allow. Files from [`INLINE_LIMIT`] up are whole, page-aligned blocks, so
//! that a DAX mapping of the image works.
//!
//! Reference: Linux `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`.

mod access;
mod builder;
mod copy;
mod data;
mod directory;
mod image;
mod layout;
mod output;
mod plan;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;
mod tree;
mod xattr;

pub use builder::Builder;
pub use copy::copy_directory;
pub use data::DataWriter;
pub use image::{ImageOptions, write_image};
pub use output::Output;
pub use tree::{
    Content, Device, Directory, Dirent, Extent, FileData, Inode, InodeId, Metadata, Timestamp, Tree,
};
pub use xattr::Xattr;

/// Bytes in a block, and the page size of the guests that mount the image.
pub const BLOCK_SIZE: u64 = 4096;

/// The largest file or directory tail, in bytes, kept behind its inode instead of in a block of its own.
pub const INLINE_LIMIT: usize = 2048;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused to store the bytes.
    #[error("cannot write the file system image")]
    Write(#[source] std::io::Error),
    /// More than 2^32 blocks.
    #[error("the file system would be larger than 16 TiB, the most that EROFS can address")]
    TooLarge,
    /// An inode's extended attributes do not fit the 16-bit count of its header.
    #[error("the extended attributes of one file take {bytes} bytes, more than EROFS can store")]
    XattrsTooLarge {
        /// Bytes they would take.
        bytes: usize,
    },
    /// [`Builder`] was given a path it cannot place.
    #[error("cannot add {path:?} to the file system: {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}
