//! The block device's configuration space (virtio 1.2, section 5.2.4) and the limits it announces.

/// Size of a sector, the unit of all positions.
pub const SECTOR_SIZE: u64 = 512;
/// Number of descriptors in the queue.
pub const QUEUE_SIZE: u16 = 128;
/// Data segments in a request: the queue's size without header and status.
pub const SEG_MAX: u32 = 126;
/// Bytes in a segment. With [`SEG_MAX`] it bounds how long one request keeps the event loop.
pub const SIZE_MAX: u32 = 256 << 10;
/// Bytes of data in a read or write; more cannot come from a driver that keeps the limits.
pub const MAX_DATA_BYTES: usize = SEG_MAX as usize * SIZE_MAX as usize;
/// Ranges in one discard request.
pub const MAX_DISCARD_SEGMENTS: u32 = 16;
/// Sectors in one range to discard, 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Ranges in one request to write zeroes.
pub const MAX_WRITE_ZEROES_SEGMENTS: u32 = 1;
/// Sectors in one range to write zeroes to, 32 MiB: a host file system may make us write each byte.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 16;

/// Physical blocks are 2^3 sectors: the page size of the host's page cache.
const PHYSICAL_BLOCK_EXP: u8 = 3;
/// Granularity of a discard in sectors: what a host file system frees.
const DISCARD_SECTOR_ALIGNMENT: u32 = 8;

/// Length of the configuration space up to `write_zeroes_may_unmap`, with padding.
const LEN: usize = 60;

/// The configuration space of a disk with this many sectors. All fields are little-endian.
pub fn bytes(capacity_sectors: u64) -> [u8; LEN] {
    let mut space = [0; LEN];
    let mut put = |offset: usize, value: &[u8]| {
        for (byte, &new) in space.iter_mut().skip(offset).zip(value) {
            *byte = new;
        }
    };
    put(0, &capacity_sectors.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512u32.to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXP]);
    put(26, &(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
    put(44, &DISCARD_SECTOR_ALIGNMENT.to_le_bytes());
    put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
    put(52, &MAX_WRITE_ZEROES_SEGMENTS.to_le_bytes());
    put(56, &[1]);
    space
}
