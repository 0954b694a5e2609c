//! A tar stream as it comes in: ustar, PAX and GNU's long names.
//!
//! PAX values are taken by their length, because an attribute's value may hold any byte, line ends too.

use std::fs::File;
use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::attributes::Attribute;

/// Bytes of one header block.
const BLOCK: usize = 512;

/// Bytes of one extended header: a path, a link target and the attributes of one file (stops exhaustion of memory).
const MAX_EXTENSION: u64 = 1 << 20;

/// One entry, without its content.
pub struct Entry {
    /// What it is, and what nothing below replaces.
    pub header: Header,
    /// Its name.
    pub name: Vec<u8>,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// User and group.
    pub ids: (u64, u64),
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub attributes: Vec<Attribute>,
}

/// What extended headers say of the entry behind them.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    attributes: Vec<Attribute>,
}

/// Where a tar stream comes from.
pub trait Inlet: Read {
    /// Puts the content of the entry whose header was just read, all of its `size` bytes, into the new file `file` in
    /// another way than by [`Read`]; `false` if it has none.
    fn put_content(&mut self, file: &File, size: u64) -> io::Result<bool> {
        let _ = (file, size);
        Ok(false)
    }
}

impl Inlet for &[u8] {}

/// A tar stream.
pub struct Stream<'a> {
    input: &'a mut dyn Inlet,
    /// Bytes of the current entry that were not read, and the padding behind it.
    left: u64,
    padding: u64,
}

impl<'a> Stream<'a> {
    /// The stream `input`, which is read no further than the entries that are asked for.
    pub fn new(input: &'a mut dyn Inlet) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end. What was not read of the one before is skipped.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::XHeader => extension.pax(&self.extension(size)?)?,
                EntryType::XGlobalHeader => self.expect(size),
                EntryType::GNULongName => extension.name = Some(until_zero(self.extension(size)?)),
                EntryType::GNULongLink => extension.link = Some(until_zero(self.extension(size)?)),
                _ => return self.entry(header, extension).map(Some),
            }
        }
    }

    fn entry(&mut self, header: Header, extension: Extension) -> io::Result<Entry> {
        let has_content = header.entry_type().is_file();
        let size = if has_content { extension.size.map_or_else(|| header.entry_size(), Ok)? } else { 0 };
        self.expect(size);
        // A field that nobody filled in counts as zero.
        let number = |value: Option<u64>, header: io::Result<u64>| value.or(header.ok()).unwrap_or_default();
        Ok(Entry {
            name: extension.name.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extension.link.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default(),
            ids: (number(extension.uid, header.uid()), number(extension.gid, header.gid())),
            mtime: extension
                .mtime
                .unwrap_or_else(|| i64::try_from(number(None, header.mtime())).unwrap_or_default()),
            attributes: extension.attributes,
            header,
        })
    }

    /// Fills as much of `buffer` as the entry's content has left.
    pub fn content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        self.input.read_exact(part)?;
        self.left -= wanted as u64;
        Ok(wanted)
    }

    /// Lets the inlet put the entry's whole content into `file`; `false` if it has to be read.
    pub fn put_content(&mut self, file: &File) -> io::Result<bool> {
        let put = self.left > 0 && self.input.put_content(file, self.left)?;
        if put {
            self.left = 0;
        }
        Ok(put)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(io::Error::other(format!("an extended header of {size} bytes")));
        }
        self.expect(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.content(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut Read::take(&mut *self.input, rest), &mut io::sink())?;
        if skipped == rest { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The next header; `None` at the block of zeros that ends an archive. A stream that just ends was cut.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        self.input.read_exact(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = |range: std::ops::Range<usize>| -> u32 {
            header.as_bytes().get(range).unwrap_or_default().iter().map(|byte| u32::from(*byte)).sum()
        };
        // The checksum's own eight bytes count as blanks.
        if sum(0..148) + 8 * 32 + sum(156..BLOCK) != header.cksum()? {
            return Err(io::Error::other("it is no tar archive, or damaged"));
        }
        Ok(Some(header))
    }
}

impl Extension {
    fn pax(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (key, value, rest) =
                record(bytes).ok_or_else(|| io::Error::other("a malformed PAX record"))?;
            bytes = rest;
            let text = || std::str::from_utf8(value).unwrap_or_default();
            let number = || text().parse::<u64>().map_err(io::Error::other);
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    let seconds = text().split('.').next().unwrap_or_default();
                    self.mtime = Some(seconds.parse().map_err(io::Error::other)?);
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.attributes.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The first record, `LENGTH KEY=VALUE\n`, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..blank)?).ok()?.parse().ok()?;
    let body = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((body.get(..equals)?, body.get(equals + 1..)?, bytes.get(length..)?))
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_by_their_length() {
        let mut extension = Extension::default();
        extension.pax(b"12 path=a\nb\n28 SCHILY.xattr.user.k=1=\n2\n14 mtime=-7.5\n").unwrap();
        assert_eq!(extension.name.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(extension.attributes, [(b"user.k".to_vec(), b"1=\n2".to_vec())]);
        assert_eq!(extension.mtime, Some(-7));
    }

    #[test]
    fn damaged_records_are_refused() {
        for bytes in [&b"x"[..], b"5 a\n", b"99 a=b\n", b"6 a=b", b"-1 a=b\n", b"8 uid=x\n", b"0 =\n"] {
            assert!(Extension::default().pax(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused_and_an_extended_header_is_bounded() {
        assert!(Stream::new(&mut &[b'x'; 1024][..]).next_entry().is_err());
        assert!(Stream::new(&mut &[0; 100][..]).next_entry().is_err());
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(MAX_EXTENSION + 1);
        header.set_cksum();
        let error = Stream::new(&mut &header.as_bytes()[..]).next_entry().err().unwrap();
        assert!(error.to_string().contains("extended header"), "{error}");
    }
}
