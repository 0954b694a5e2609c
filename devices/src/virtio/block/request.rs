//! From the bytes of a request to what has to be done. Pure: nothing is read or written here.
//!
//! Virtio 1.2, section 5.2.6. Every value is the guest's; what is returned is within the disk.

use std::fmt;

use super::config_space::{
    MAX_DATA_BYTES, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES_SECTORS,
    MAX_WRITE_ZEROES_SEGMENTS, SECTOR_SIZE,
};
use crate::rate::Direction;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Bytes of the header that each request starts with.
pub const HEADER_BYTES: usize = 16;
/// Bytes of one range of a discard or write-zeroes request.
pub const RANGE_BYTES: usize = 16;
/// Bytes of ranges that a request may carry.
pub const MAX_RANGES_BYTES: usize = MAX_DISCARD_SEGMENTS as usize * RANGE_BYTES;
/// Bytes of a serial number.
pub const SERIAL_BYTES: usize = 20;

/// The last byte of a request, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Not done: the host failed, or the request makes no sense.
    IoError,
    /// No such request.
    Unsupported,
}

impl Status {
    /// As in the status byte.
    pub fn to_byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// What is known of the disk.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Size in sectors.
    pub capacity_sectors: u64,
    /// Whether all that changes it is refused.
    pub read_only: bool,
}

/// A request as it came: everything but the data.
#[derive(Clone, Copy, Debug)]
pub struct RawRequest<'a> {
    /// The first bytes that the device reads.
    pub header: [u8; HEADER_BYTES],
    /// Number of bytes after the header that the device reads.
    pub readable: usize,
    /// Number of bytes before the status that the device writes.
    pub writable: usize,
    /// The first [`MAX_RANGES_BYTES`] of the readable ones.
    pub ranges: &'a [u8],
}

/// Bytes of the disk, within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Disk to guest.
    Read(ByteRange),
    /// Guest to disk.
    Write(ByteRange),
    /// What was completed before has to be on the medium.
    Flush,
    /// The contents are not needed any more.
    Discard(Vec<ByteRange>),
    /// The contents become zero; with `unmap` the space may be given back.
    WriteZeroes {
        /// Where.
        range: ByteRange,
        /// Whether space may be given back.
        unmap: bool,
    },
    /// The serial number.
    GetId,
}

/// For reports of what failed.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(range) => write!(f, "read {range}"),
            Self::Write(range) => write!(f, "write {range}"),
            Self::Flush => write!(f, "flush"),
            Self::Discard(ranges) => write!(f, "discard {} ranges", ranges.len()),
            Self::WriteZeroes { range, .. } => write!(f, "write zeroes, {range}"),
            Self::GetId => write!(f, "serial number"),
        }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.len, self.offset)
    }
}

/// Whether the request with this header brings something into the guest; what is no read counts with the writes.
pub fn direction(bytes: [u8; HEADER_BYTES]) -> Direction {
    match header(bytes).0 {
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID => Direction::Input,
        _ => Direction::Output,
    }
}

/// What `raw` asks for on `disk`, or the status that answers it.
pub fn parse(raw: &RawRequest<'_>, disk: Disk) -> Result<Request, Status> {
    let (kind, sector) = header(raw.header);
    match kind {
        VIRTIO_BLK_T_IN => {
            no_data(raw.readable)?;
            Ok(Request::Read(disk.data_range(sector, raw.writable)?))
        }
        VIRTIO_BLK_T_OUT => {
            disk.check_writable()?;
            no_data(raw.writable)?;
            Ok(Request::Write(disk.data_range(sector, raw.readable)?))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if raw.writable >= SERIAL_BYTES => Ok(Request::GetId),
        VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
        VIRTIO_BLK_T_DISCARD => disk.discard(raw),
        VIRTIO_BLK_T_WRITE_ZEROES => disk.write_zeroes(raw),
        _ => Err(Status::Unsupported),
    }
}

impl Disk {
    fn check_writable(self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    fn data_range(self, sector: u64, len: usize) -> Result<ByteRange, Status> {
        if len > MAX_DATA_BYTES {
            return Err(Status::IoError);
        }
        let len = u64::try_from(len).map_err(|_| Status::IoError)?;
        if !len.is_multiple_of(SECTOR_SIZE) {
            return Err(Status::IoError);
        }
        self.range(sector, len)
    }

    /// `len` bytes from `sector` on, if the disk has them.
    fn range(self, sector: u64, len: u64) -> Result<ByteRange, Status> {
        let size = self.capacity_sectors.checked_mul(SECTOR_SIZE);
        let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        if size.is_some_and(|size| end <= size) {
            Ok(ByteRange { offset, len })
        } else {
            Err(Status::IoError)
        }
    }

    fn discard(self, raw: &RawRequest<'_>) -> Result<Request, Status> {
        self.check_writable()?;
        let mut ranges = Vec::new();
        for entry in entries(raw, MAX_DISCARD_SEGMENTS)? {
            // The unmap flag is for the other request only (section 5.2.6.2).
            if entry.flags != 0 {
                return Err(Status::Unsupported);
            }
            ranges.push(self.entry_range(&entry, MAX_DISCARD_SECTORS)?);
        }
        Ok(Request::Discard(ranges))
    }

    fn write_zeroes(self, raw: &RawRequest<'_>) -> Result<Request, Status> {
        self.check_writable()?;
        let entry = entries(raw, MAX_WRITE_ZEROES_SEGMENTS)?.next().ok_or(Status::IoError)?;
        if entry.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        let range = self.entry_range(&entry, MAX_WRITE_ZEROES_SECTORS)?;
        Ok(Request::WriteZeroes { range, unmap: entry.flags != 0 })
    }

    fn entry_range(self, entry: &Entry, max_sectors: u32) -> Result<ByteRange, Status> {
        if entry.sectors > max_sectors {
            return Err(Status::IoError);
        }
        self.range(entry.sector, u64::from(entry.sectors).saturating_mul(SECTOR_SIZE))
    }
}

/// One range of a discard or write-zeroes request.
struct Entry {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Entry {
    fn parse(bytes: [u8; RANGE_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, sectors @ .., k, l, m, n] = bytes;
        Self {
            sector: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            sectors: u32::from_le_bytes(sectors),
            flags: u32::from_le_bytes([k, l, m, n]),
        }
    }
}

/// The ranges that a request carries, at least one and at most `max`.
fn entries<'a>(raw: &RawRequest<'a>, max: u32) -> Result<impl Iterator<Item = Entry> + use<'a>, Status> {
    no_data(raw.writable)?;
    let (entries, rest) = raw.ranges.as_chunks::<RANGE_BYTES>();
    let count = u32::try_from(entries.len()).map_err(|_| Status::IoError)?;
    let whole = rest.is_empty() && raw.ranges.len() == raw.readable;
    if !whole || count == 0 || count > max {
        return Err(Status::IoError);
    }
    Ok(entries.iter().map(|&bytes| Entry::parse(bytes)))
}

/// Type and sector; four bytes between them are reserved.
fn header(bytes: [u8; HEADER_BYTES]) -> (u32, u64) {
    let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector))
}

fn no_data(len: usize) -> Result<(), Status> {
    if len == 0 { Ok(()) } else { Err(Status::IoError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk { capacity_sectors: 1000, read_only: false };
    const READ_ONLY: Disk = Disk { capacity_sectors: 1000, read_only: true };

    fn raw(kind: u32, sector: u64, readable: usize, writable: usize) -> RawRequest<'static> {
        let mut header = [0xee; HEADER_BYTES];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        RawRequest { header, readable, writable, ranges: &[] }
    }

    fn with_ranges(kind: u32, ranges: &[u8]) -> RawRequest<'_> {
        RawRequest { ranges, ..raw(kind, 0, ranges.len(), 0) }
    }

    fn entry(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn reads_and_writes_within_the_disk_are_accepted() {
        let range = |offset, len| ByteRange { offset, len };
        assert_eq!(parse(&raw(0, 3, 0, 1024), DISK), Ok(Request::Read(range(1536, 1024))));
        assert_eq!(parse(&raw(0, 999, 0, 512), READ_ONLY), Ok(Request::Read(range(511_488, 512))));
        assert_eq!(parse(&raw(1, 0, 512, 0), DISK), Ok(Request::Write(range(0, 512))));
        assert_eq!(parse(&raw(0, 1000, 0, 0), DISK), Ok(Request::Read(range(512_000, 0))));
    }

    #[test]
    fn data_that_is_no_part_of_the_disk_is_refused() {
        let table = [
            raw(0, 999, 0, 1024),
            raw(0, 1001, 0, 0),
            raw(0, u64::MAX, 0, 512),
            raw(0, u64::MAX / 512, 0, 512),
            raw(0, 0, 0, 511),
            raw(0, 0, 512, 512),
            raw(1, 1000, 512, 0),
            raw(1, 0, 513, 0),
            raw(1, 0, 512, 512),
            raw(0, 0, 0, MAX_DATA_BYTES + 512),
            raw(8, 0, 0, 19),
        ];
        for request in table {
            assert_eq!(parse(&request, DISK), Err(Status::IoError), "{request:?}");
        }
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let zeroes = entry(0, 1, 0);
        for request in [raw(1, 0, 512, 0), with_ranges(11, &zeroes), with_ranges(13, &zeroes)] {
            assert_eq!(parse(&request, READ_ONLY), Err(Status::IoError), "{request:?}");
            assert!(parse(&request, DISK).is_ok());
        }
    }

    #[test]
    fn unknown_types_are_unsupported() {
        for kind in [2, 3, 5, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(parse(&raw(kind, 0, 0, 512), DISK), Err(Status::Unsupported), "{kind}");
        }
    }

    #[test]
    fn ranges_are_taken_in_order() {
        let ranges = [entry(1, 2, 0), entry(999, 1, 0)].concat();
        let expected = [ByteRange { offset: 512, len: 1024 }, ByteRange { offset: 511_488, len: 512 }];
        assert_eq!(parse(&with_ranges(11, &ranges), DISK), Ok(Request::Discard(expected.to_vec())));
        for (flags, unmap) in [(0, false), (1, true)] {
            let range = ByteRange { offset: 512, len: 1024 };
            let expected = Request::WriteZeroes { range, unmap };
            assert_eq!(parse(&with_ranges(13, &entry(1, 2, flags)), DISK), Ok(expected));
        }
    }

    #[test]
    fn broken_ranges_are_refused() {
        let big = Disk { capacity_sectors: u64::MAX / 512, read_only: false };
        let table = [
            (11, vec![], Status::IoError),
            (11, vec![0; 15], Status::IoError),
            (11, vec![0; 17], Status::IoError),
            (11, vec![0; MAX_RANGES_BYTES + 16], Status::IoError),
            (11, entry(0, 1, 1), Status::Unsupported),
            (11, entry(u64::MAX, 1, 0), Status::IoError),
            (11, entry(0, MAX_DISCARD_SECTORS + 1, 0), Status::IoError),
            (13, vec![0; 32], Status::IoError),
            (13, entry(0, 1, 2), Status::Unsupported),
            (13, entry(0, MAX_WRITE_ZEROES_SECTORS + 1, 0), Status::IoError),
        ];
        for (kind, ranges, status) in table {
            assert_eq!(parse(&with_ranges(kind, &ranges), big), Err(status), "{kind} {ranges:?}");
        }
    }

    #[test]
    fn ranges_that_were_cut_off_are_refused() {
        let ranges = entry(0, 1, 0);
        let request = RawRequest { readable: 32, ..with_ranges(11, &ranges) };
        assert_eq!(parse(&request, DISK), Err(Status::IoError));
    }
}
