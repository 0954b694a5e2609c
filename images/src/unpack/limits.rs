//! Bounds on what an image may ask of the host. Every one stops an attack that a small download could mount.

/// Bounds of one unpacking. The defaults are far above real images; a caller may state lower ones.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Uncompressed bytes of all layers together. Stops decompression bombs before the disk is full.
    pub unpacked_bytes: u64,
    /// Tar entries of all layers together, with the directories they imply. Stops archives of countless empty
    /// files, each of which costs memory here and an inode in the image.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked_bytes: MAX_UNPACKED_BYTES, entries: MAX_ENTRIES }
    }
}

/// Default for [`Limits::unpacked_bytes`]: 64 GiB.
pub const MAX_UNPACKED_BYTES: u64 = 64 << 30;

/// Default for [`Limits::entries`].
pub const MAX_ENTRIES: u64 = 4_000_000;

/// Layers of one image. Stops quadratic work through whiteouts that visit the same directories again and again.
pub const MAX_LAYERS: usize = 512;

/// Apparent bytes of all files with their holes. Stops a sparse file that exhausts the image's 32-bit block numbers.
pub const MAX_APPARENT_BYTES: u64 = 4 << 40;

/// Bytes of a path or a link target, as in Linux. Stops long-name headers that would be read into memory whole.
pub const MAX_PATH: usize = 4096;

/// Bytes of one path component, as in Linux and EROFS.
pub const MAX_NAME: usize = 255;

/// Steps below the root. Stops trees that grow deeper with every entry through a chain of symbolic links.
pub const MAX_DEPTH: u32 = 2048;

/// Symbolic links followed for one path, as in Linux. Stops loops.
pub const MAX_SYMLINKS: u32 = 40;

/// Components looked at for one path, with those of the links it runs through. Stops links that multiply work.
pub const MAX_PATH_STEPS: u32 = 16 << 10;

/// Device nodes in an image. Stops device bombs; real images have a dozen.
pub const MAX_DEVICES: u32 = 4096;

/// Bytes of one entry's PAX header. Stops headers that would be read into memory whole.
pub const MAX_PAX_HEADER: u64 = 1 << 20;

/// Bytes of one entry's extended attributes, names and values, as Linux limits one list of names or one value.
pub const MAX_XATTR_BYTES: usize = 64 << 10;

/// Bytes of all extended attributes of an image, which are held in memory.
pub const MAX_TOTAL_XATTR_BYTES: u64 = 256 << 20;

/// Data segments of one sparse file. Stops maps that would be read into memory whole.
pub const MAX_SPARSE_SEGMENTS: usize = 1 << 20;

/// Bytes of small files held in memory to be put behind their inodes; later small files get blocks instead.
pub const MAX_INLINE_BYTES: u64 = 128 << 20;
