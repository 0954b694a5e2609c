//! The records of a PAX extended header (POSIX.1-2001, `pax` Interchange Format) that matter to a root file system.

use super::limits::{MAX_SPARSE_SEGMENTS, MAX_XATTR_BYTES};
use super::number::{decimal, pax_time};
use super::sparse::Segment;
use super::tar::TarError;
use crate::erofs::{Timestamp, Xattr};

/// Attributes of a live file system that an image must not bring along: overlayfs' own marks would make the guest's
/// overlay hide or redirect files, a host's SELinux label means nothing in the guest.
const DROPPED_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"security.selinux"];

/// What the records said; anything absent is taken from the entry's own header.
#[derive(Debug, Default)]
pub(super) struct PaxHeader {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

/// `GNU.sparse.*`, of formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Formats 0.0 and 0.1 list the segments here, 1.0 in front of the data.
    pub(super) map: Option<Vec<Segment>>,
    /// Format 0.0: an offset whose length comes in the next record.
    offset: Option<u64>,
}

impl PaxHeader {
    /// Parses all records of `bytes`.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut header = Self::default();
        let mut xattr_bytes = 0;
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarError::Pax)?;
            bytes = rest;
            match key.strip_prefix(b"SCHILY.xattr.") {
                Some(name) => {
                    xattr_bytes += name.len() + value.len();
                    if xattr_bytes > MAX_XATTR_BYTES {
                        return Err(TarError::XattrsTooLarge);
                    }
                    header.xattrs.extend(allowed_xattr(name, value));
                }
                None => header.apply(key, value)?,
            }
        }
        // Of several values for one name the last one counts, as it would with setxattr. The sort is stable.
        header.xattrs.sort_by(Xattr::cmp_name);
        header.xattrs.dedup_by(|later, kept| {
            let same = later.cmp_name(kept).is_eq();
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        Ok(header)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || decimal(value).ok_or(TarError::Pax);
        match key {
            // An empty value takes back what an earlier record said.
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                let (seconds, nanos) = pax_time(value).ok_or(TarError::Pax)?;
                self.mtime = Some(Timestamp { seconds, nanos });
            }
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or(TarError::Sparse)?;
                self.sparse.push(Segment { offset, len: number()? })?;
            }
            b"GNU.sparse.map" => self.sparse.parse_map(value)?,
            _ => {}
        }
        Ok(())
    }
}

impl PaxSparse {
    fn push(&mut self, segment: Segment) -> Result<(), TarError> {
        let map = self.map.get_or_insert_default();
        if map.len() >= MAX_SPARSE_SEGMENTS {
            return Err(TarError::Sparse);
        }
        map.push(segment);
        Ok(())
    }

    /// Format 0.1: `offset,length,offset,length,…`.
    fn parse_map(&mut self, value: &[u8]) -> Result<(), TarError> {
        self.map = Some(Vec::new());
        if value.is_empty() {
            return Ok(());
        }
        let mut numbers = value.split(|byte| *byte == b',').map(|text| decimal(text).ok_or(TarError::Sparse));
        while let Some(offset) = numbers.next() {
            let len = numbers.next().ok_or(TarError::Sparse)??;
            self.push(Segment { offset: offset?, len })?;
        }
        Ok(())
    }
}

/// The attribute to store, if it is one that an image may bring and EROFS can hold.
pub(crate) fn allowed_xattr(name: &[u8], value: &[u8]) -> Option<Xattr> {
    if DROPPED_XATTRS.iter().any(|dropped| name.starts_with(dropped)) {
        return None;
    }
    Xattr::new(name, value)
}

/// The first record, `LENGTH KEY=VALUE\n`, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..blank])?).ok()?;
    let body = bytes.get(blank + 1..len)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in pairs {
            let rest = key.len() + value.len() + 3;
            let len = (1..).find(|len| *len == rest + len.to_string().len()).expect("converges");
            bytes.extend_from_slice(format!("{len} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        bytes
    }

    #[test]
    fn records_are_read_with_binary_values() {
        let bytes = records(&[
            ("path", b"a\xffb\nc"),
            ("mtime", b"7.000000009"),
            ("SCHILY.xattr.security.capability", b"\0\n=\x01"),
            ("uid", b"4294967294"),
            ("comment", b"x"),
        ]);
        let header = PaxHeader::parse(&bytes).expect("well formed");
        assert_eq!(header.path.as_deref(), Some(&b"a\xffb\nc"[..]));
        assert_eq!(header.mtime, Some(Timestamp { seconds: 7, nanos: 9 }));
        assert_eq!(header.uid, Some(4_294_967_294));
        assert_eq!(header.xattrs.len(), 1);
        assert_eq!(header.xattrs[0].value(), b"\0\n=\x01");
    }

    #[test]
    fn attributes_of_the_hosts_own_file_system_are_left_out() {
        let bytes = records(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.user.kept", b"2"),
            ("SCHILY.xattr.user.kept", b"1"),
        ]);
        let header = PaxHeader::parse(&bytes).expect("well formed");
        assert_eq!(header.xattrs.iter().map(Xattr::name).collect::<Vec<_>>(), [b"user.kept"]);
        assert_eq!(header.xattrs[0].value(), b"1");
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [&b"5 a=b"[..], b"99 a=b\n", b"6 a-b\n", b" a=b\n", b"0 a=b\n", b"-6 a=b\n", b"4 a\n"] {
            assert!(matches!(PaxHeader::parse(bad), Err(TarError::Pax)), "{bad:?}");
        }
        let huge = records(&[("SCHILY.xattr.user.x", &[0; MAX_XATTR_BYTES])]);
        assert!(matches!(PaxHeader::parse(&huge), Err(TarError::XattrsTooLarge)));
    }
}
