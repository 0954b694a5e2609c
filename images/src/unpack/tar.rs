//! Walks the entries of a tar stream: POSIX ustar and pax, GNU and old v7 headers.
//!
//! Header fields come from the `tar` crate's types. The walk is ours since every long name, PAX header and sparse
//! map must be bounded before it is read, and file data must go to the image without a copy of its own.

use tar::{EntryType, Header};

use super::limits::{MAX_PATH, MAX_PAX_HEADER};
use super::number::header_number;
use super::pax::PaxHeader;
use super::sparse::{Segment, check, read_gnu, read_pax_1_0};
use super::stream::{Stream, StreamError};
use crate::erofs::{Device, Metadata, Timestamp, Xattr};

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It ends inside an entry.
    #[error("the archive ends in the middle of it: the layer is truncated")]
    Truncated,
    /// Reading or decompressing failed.
    #[error("cannot decompress the layer")]
    Read(#[source] std::io::Error),
    /// Too many uncompressed bytes.
    #[error("the image unpacks to more than the limit of {limit} bytes: it may be a decompression bomb")]
    TooLarge {
        /// The limit on all layers together.
        limit: u64,
    },
    /// A block that should be a header is none.
    #[error("the layer is not a tar archive, or it is damaged: a header's checksum is wrong")]
    Checksum,
    /// A field that is no number or out of range.
    #[error("its header's {0} is not valid")]
    Field(&'static str),
    /// PAX records that do not parse.
    #[error("its PAX header is malformed")]
    Pax,
    /// Above the limit.
    #[error("its PAX header is larger than {MAX_PAX_HEADER} bytes")]
    PaxTooLarge,
    /// Above the limit.
    #[error("its extended attributes are larger than {} bytes", super::limits::MAX_XATTR_BYTES)]
    XattrsTooLarge,
    /// Above the limit.
    #[error("its path or link target is longer than {MAX_PATH} bytes")]
    NameTooLarge,
    /// A map that contradicts itself.
    #[error("its map of a sparse file is malformed")]
    Sparse,
    /// A type flag without meaning in a layer.
    #[error("its type {0:?} is not supported")]
    Type(char),
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file; its data follows.
    File,
    /// A directory.
    Directory,
    /// Another name of the path in `link`.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// One entry, its extension headers applied.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) metadata: Metadata,
    pub(super) xattrs: Vec<Xattr>,
    /// A file's size with its holes.
    pub(super) size: u64,
    /// What is stored of it; anything else is a hole.
    pub(super) segments: Vec<Segment>,
}

/// A walk over one layer.
pub(super) struct TarReader {
    stream: Stream,
    /// Bytes of the current entry's data and padding not yet taken.
    data: u64,
    padding: u64,
    /// The path of the entry being read, for error messages.
    current: Vec<u8>,
    limit: u64,
}

/// Extension headers that apply to the next entry.
#[derive(Default)]
struct Extensions {
    pax: Option<PaxHeader>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

impl TarReader {
    /// Walks `stream`; `limit` is what errors state as the image's limit.
    pub(super) fn new(stream: Stream, limit: u64) -> Self {
        Self { stream, data: 0, padding: 0, current: Vec::new(), limit }
    }

    /// The path of the entry that was being read when an error occurred.
    pub(super) fn current(&self) -> &[u8] {
        &self.current
    }

    /// Uncompressed bytes taken from the layer.
    pub(super) fn taken(&self) -> u64 {
        self.stream.taken()
    }

    /// The stream, to read its rest for the digest.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// The next entry; `None` at the end of the archive. Skips what is left of the last one's data.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return if extensions.is_empty() { Ok(None) } else { Err(TarError::Truncated) };
            };
            self.current = header.path_bytes().into_owned();
            let size = number(&header.as_old().size, "size")?;
            match header.entry_type() {
                EntryType::XHeader => {
                    extensions.pax = Some(PaxHeader::parse(&self.extension(size, MAX_PAX_HEADER)?)?)
                }
                EntryType::XGlobalHeader => {
                    self.extension(size, MAX_PAX_HEADER)?;
                }
                EntryType::GNULongName => extensions.gnu_path = Some(self.long_name(size)?),
                EntryType::GNULongLink => extensions.gnu_link = Some(self.long_name(size)?),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// Passes the next `len` bytes of the entry's data to `sink`, piece by piece.
    pub(super) fn read<E: From<TarError>>(
        &mut self,
        len: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(len <= self.data, "an entry has only its own data");
        let mut rest = len;
        while rest > 0 {
            let available = self.stream.available().map_err(|error| stream_error(error, self.limit))?;
            if available.is_empty() {
                return Err(TarError::Truncated.into());
            }
            let count = usize::try_from(rest).map_or(available.len(), |rest| rest.min(available.len()));
            sink(&available[..count])?;
            self.stream.consume(count);
            rest -= count as u64;
            self.data -= count as u64;
        }
        Ok(())
    }

    /// Passes over the rest of the current entry and its padding. Writers exist that leave the last entry without any:
    /// its data is whole then, and the digest says so.
    fn skip_rest(&mut self) -> Result<(), TarError> {
        self.read(self.data, |_| Ok::<(), TarError>(()))?;
        self.data = std::mem::take(&mut self.padding);
        let is_over = |error| stream_error(error, self.limit);
        if self.data > 0 && self.stream.available().map_err(is_over)?.is_empty() {
            self.data = 0;
        }
        self.read(self.data, |_| Ok::<(), TarError>(()))
    }

    /// The next header block. Two blocks of zeros or the end of the stream end the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let read = |stream: &mut Stream, limit| read_block(stream).map_err(|error| with_limit(error, limit));
        let Some(block) = read(&mut self.stream, self.limit)? else { return Ok(None) };
        if block == [0; BLOCK] {
            return match read(&mut self.stream, self.limit)? {
                None => Ok(None),
                Some(second) if second == [0; BLOCK] => Ok(None),
                Some(_) => Err(TarError::Checksum),
            };
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let expected = header_number(&header.as_old().cksum);
        let field = 148..156;
        let sum = |value: fn(u8) -> i64| -> i64 {
            let bytes = block.iter().enumerate();
            bytes.map(|(at, byte)| if field.contains(&at) { i64::from(b' ') } else { value(*byte) }).sum()
        };
        // Some old writers added up signed characters.
        if expected != Some(sum(i64::from)) && expected != Some(sum(|byte| i64::from(byte as i8))) {
            return Err(TarError::Checksum);
        }
        Ok(Some(header))
    }

    /// The body of an extension header, at most `limit` bytes.
    fn extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(TarError::PaxTooLarge);
        }
        self.set_data(size);
        let mut body = Vec::new();
        self.read(size, |bytes| {
            body.extend_from_slice(bytes);
            Ok::<(), TarError>(())
        })?;
        Ok(body)
    }

    /// The body of a GNU long name, which ends at a NUL.
    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_PATH as u64 + 1 {
            return Err(TarError::NameTooLarge);
        }
        let mut name = self.extension(size, MAX_PAX_HEADER)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry, TarError> {
        let mut pax = extensions.pax.unwrap_or_default();
        let path =
            extensions.gnu_path.or(pax.path.take()).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions.gnu_link.or(pax.link.take());
        let link =
            link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        self.current.clone_from(&path);
        if link.len() > MAX_PATH {
            return Err(TarError::NameTooLarge);
        }
        let kind = kind(header, &path)?;
        let mut entry = Entry {
            path,
            link,
            metadata: metadata(header, &pax)?,
            xattrs: pax.xattrs,
            size: 0,
            segments: Vec::new(),
            kind,
        };
        if entry.kind == Kind::File {
            self.file_data(&mut entry, header, pax.size.unwrap_or(size), pax.sparse)?;
        }
        Ok(entry)
    }

    /// Finds out which parts of a file are stored. Other types have no data, whatever their size field says.
    fn file_data(
        &mut self,
        entry: &mut Entry,
        header: &Header,
        mut stored: u64,
        sparse: super::pax::PaxSparse,
    ) -> Result<(), TarError> {
        // What says itself that it is too large is not written to the disk first.
        if stored > self.stream.remaining() {
            return Err(TarError::TooLarge { limit: self.limit });
        }
        let padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        (entry.size, entry.segments) = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or(TarError::Sparse)?;
            read_gnu(gnu, &mut self.stream).map_err(|error| with_limit(error, self.limit))?
        } else if sparse.major == Some(1) {
            let map =
                read_pax_1_0(&mut self.stream, &mut stored).map_err(|error| with_limit(error, self.limit))?;
            (sparse.real_size.ok_or(TarError::Sparse)?, map)
        } else if let Some(map) = sparse.map {
            (sparse.real_size.ok_or(TarError::Sparse)?, map)
        } else {
            (stored, vec![Segment { offset: 0, len: stored }])
        };
        if let Some(name) = sparse.name {
            self.current.clone_from(&name);
            entry.path = name;
        }
        check(&entry.segments, entry.size, stored)?;
        (self.data, self.padding) = (stored, padding);
        Ok(())
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.gnu_path.is_none() && self.gnu_link.is_none()
    }
}

/// One block; `None` if the stream is at its end.
pub(super) fn read_block(stream: &mut Stream) -> Result<Option<[u8; BLOCK]>, TarError> {
    let mut block = [0; BLOCK];
    match stream.fill(&mut block).map_err(|error| stream_error(error, 0))? {
        0 => Ok(None),
        BLOCK => Ok(Some(block)),
        _ => Err(TarError::Truncated),
    }
}

/// As a [`TarError`], naming the image's `limit`.
pub(super) fn stream_error(error: StreamError, limit: u64) -> TarError {
    match error {
        StreamError::Read(source) => TarError::Read(source),
        StreamError::TooLarge => TarError::TooLarge { limit },
    }
}

fn with_limit(error: TarError, limit: u64) -> TarError {
    match error {
        TarError::TooLarge { .. } => TarError::TooLarge { limit },
        other => other,
    }
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, TarError> {
    Ok(match header.entry_type() {
        // v7 archives mark directories by their name alone.
        EntryType::Regular if header.as_old().linkflag == [0] && path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice(device(header)?),
        EntryType::Block => Kind::BlockDevice(device(header)?),
        EntryType::Fifo => Kind::Fifo,
        other => return Err(TarError::Type(char::from(other.as_byte()))),
    })
}

/// The same bytes in ustar and GNU headers; Linux keeps 12 and 20 bits.
fn device(header: &Header) -> Result<Device, TarError> {
    let bytes = header.as_bytes();
    let number = |range: std::ops::Range<usize>, max: i64| {
        let number = header_number(&bytes[range]).filter(|number| (0..=max).contains(number));
        number.map(|number| number as u32).ok_or(TarError::Field("device number"))
    };
    Ok(Device { major: number(329..337, 0xfff)?, minor: number(337..345, 0xf_ffff)? })
}

fn metadata(header: &Header, pax: &PaxHeader) -> Result<Metadata, TarError> {
    let old = header.as_old();
    let id = |from_pax: Option<u64>, field: &[u8], name| {
        let id = match from_pax {
            Some(id) => id,
            None => number(field, name)?,
        };
        u32::try_from(id).map_err(|_| TarError::Field(name))
    };
    let mtime = match pax.mtime {
        Some(mtime) => mtime,
        None => Timestamp { seconds: header_number(&old.mtime).ok_or(TarError::Field("time"))?, nanos: 0 },
    };
    Ok(Metadata {
        mode: (number(&old.mode, "mode")? & 0o7777) as u16,
        uid: id(pax.uid, &old.uid, "owner")?,
        gid: id(pax.gid, &old.gid, "group")?,
        mtime,
    })
}

fn number(field: &[u8], name: &'static str) -> Result<u64, TarError> {
    header_number(field).and_then(|number| u64::try_from(number).ok()).ok_or(TarError::Field(name))
}
