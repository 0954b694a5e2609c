//! The structures of an EROFS image as bytes (`fs/erofs/erofs_fs.h`), little endian throughout.

use super::tree::{Content, Device, Inode, Timestamp};
use super::xattr::body_count;

/// Offset of the superblock in block 0.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// An inode's address is counted in slots of this many bytes.
pub(super) const SLOT_SIZE: u64 = 32;
/// Bytes of `struct erofs_dirent`.
pub(super) const DIRENT_SIZE: usize = 12;
/// `raw_blkaddr` of an inode without blocks.
pub(super) const NO_BLOCK: u32 = u32::MAX;

const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 12;
/// The superblock has a checksum; inodes have their own mtime.
const FEATURE_COMPAT: u32 = 0x1 | 0x2;

/// The values of `struct erofs_super_block` that vary.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: Timestamp,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Block 0, whole, with its checksum.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut sb = Vec::with_capacity(128);
        sb.extend_from_slice(&MAGIC.to_le_bytes());
        sb.extend_from_slice(&[0; 4]);
        sb.extend_from_slice(&FEATURE_COMPAT.to_le_bytes());
        sb.extend_from_slice(&[BLOCK_BITS, 0]);
        sb.extend_from_slice(&self.root_nid.to_le_bytes());
        sb.extend_from_slice(&self.inodes.to_le_bytes());
        sb.extend_from_slice(&self.build_time.seconds.to_le_bytes());
        sb.extend_from_slice(&self.build_time.nanos.to_le_bytes());
        sb.extend_from_slice(&self.blocks.to_le_bytes());
        sb.extend_from_slice(&self.meta_block.to_le_bytes());
        sb.extend_from_slice(&self.xattr_block.to_le_bytes());
        sb.extend_from_slice(&self.uuid);
        let mut block = vec![0; 1 << BLOCK_BITS];
        block[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + sb.len()].copy_from_slice(&sb);
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// How an inode's data is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// Whole blocks.
    Plain,
    /// Whole blocks, and the rest behind the inode.
    Inline,
}

/// Everything an on-disk inode says besides what [`Inode`] holds.
pub(super) struct InodePlacement {
    pub(super) compact: bool,
    pub(super) layout: DataLayout,
    pub(super) xattr_size: usize,
    pub(super) size: u64,
    /// First data block, or [`NO_BLOCK`].
    pub(super) block: u32,
    /// A number for `st_ino` of 32-bit programs.
    pub(super) number: u32,
}

/// Bytes of an on-disk inode.
pub(super) fn inode_size(compact: bool) -> u64 {
    if compact { 32 } else { 64 }
}

/// Whether the 32-byte form can hold `inode`: its time is the image's, its numbers are small.
pub(super) fn fits_compact(inode: &Inode, size: u64, build_time: Timestamp) -> bool {
    let meta = &inode.metadata;
    meta.mtime == build_time
        && u16::try_from(meta.uid).is_ok()
        && u16::try_from(meta.gid).is_ok()
        && u16::try_from(inode.links).is_ok()
        && u32::try_from(size).is_ok()
}

/// Appends the on-disk inode.
pub(super) fn encode_inode(inode: &Inode, placement: &InodePlacement, out: &mut Vec<u8>) {
    let layout: u16 = match placement.layout {
        DataLayout::Plain => 0,
        DataLayout::Inline => 2,
    };
    let format = layout << 1 | u16::from(!placement.compact);
    let xattr_count = body_count(placement.xattr_size) as u16;
    let mode = file_type(&inode.content).mode_bits | inode.metadata.mode;
    let union = match inode.content {
        Content::CharDevice(device) | Content::BlockDevice(device) => encode_device(device),
        Content::Fifo | Content::Socket => 0,
        _ => placement.block,
    };
    let meta = &inode.metadata;
    out.extend_from_slice(&format.to_le_bytes());
    out.extend_from_slice(&xattr_count.to_le_bytes());
    out.extend_from_slice(&mode.to_le_bytes());
    if placement.compact {
        out.extend_from_slice(&(inode.links as u16).to_le_bytes());
        out.extend_from_slice(&(placement.size as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&union.to_le_bytes());
        out.extend_from_slice(&placement.number.to_le_bytes());
        out.extend_from_slice(&(meta.uid as u16).to_le_bytes());
        out.extend_from_slice(&(meta.gid as u16).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    } else {
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&placement.size.to_le_bytes());
        out.extend_from_slice(&union.to_le_bytes());
        out.extend_from_slice(&placement.number.to_le_bytes());
        out.extend_from_slice(&meta.uid.to_le_bytes());
        out.extend_from_slice(&meta.gid.to_le_bytes());
        out.extend_from_slice(&meta.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&meta.mtime.nanos.to_le_bytes());
        out.extend_from_slice(&inode.links.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}

/// A file type's two encodings.
pub(super) struct FileType {
    /// `S_IFMT` bits of `i_mode`.
    pub(super) mode_bits: u16,
    /// `file_type` of a directory entry.
    pub(super) dirent: u8,
}

/// The type of `content`.
pub(super) fn file_type(content: &Content) -> FileType {
    let (mode_bits, dirent) = match content {
        Content::File(_) => (0o100_000, 1),
        Content::Directory(_) => (0o040_000, 2),
        Content::CharDevice(_) => (0o020_000, 3),
        Content::BlockDevice(_) => (0o060_000, 4),
        Content::Fifo => (0o010_000, 5),
        Content::Socket => (0o140_000, 6),
        Content::Symlink(_) => (0o120_000, 7),
    };
    FileType { mode_bits, dirent }
}

/// `new_encode_dev` of the kernel.
fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major & 0xfff) << 8 | (device.minor & 0xf_ff00) << 12
}

/// CRC-32C as the superblock wants it: seed all ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_check_value_of_rfc_3720() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_decodes_them() {
        assert_eq!(encode_device(Device { major: 8, minor: 1 }), 0x801);
        assert_eq!(encode_device(Device { major: 0xabc, minor: 0x12345 }), 0x123a_bc45);
    }
}
