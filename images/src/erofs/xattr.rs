//! Extended attributes as EROFS stores them: a prefix index, the rest of the name, the value.
//!
//! Attributes that several inodes have in common (a default ACL, say) are stored once in a shared area.

use std::collections::BTreeMap;

use super::Error;

/// Prefixes that EROFS knows, with their index; an attribute of any other namespace cannot be stored.
const PREFIXES: [(u8, &[u8], bool); 5] = [
    (1, b"user.", false),
    (2, b"system.posix_acl_access", true),
    (3, b"system.posix_acl_default", true),
    (4, b"trusted.", false),
    (6, b"security.", false),
];

/// Bytes of `struct erofs_xattr_ibody_header`.
const BODY_HEADER_SIZE: usize = 12;

/// Most shared attributes of one inode: their count is one byte.
const MAX_SHARED: usize = 255;

/// One extended attribute, its name already split.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    prefix: u8,
    suffix: Box<[u8]>,
    value: Box<[u8]>,
}

impl Xattr {
    /// `None` if EROFS cannot store it: an unknown namespace, no name in it, a name above 255 bytes or a value
    /// above 65535.
    pub fn new(name: &[u8], value: &[u8]) -> Option<Self> {
        let (prefix, suffix) = PREFIXES.iter().find_map(|&(index, prefix, whole)| {
            let suffix = name.strip_prefix(prefix)?;
            (suffix.is_empty() == whole).then_some((index, suffix))
        })?;
        if name.len() > 255 || u16::try_from(value.len()).is_err() {
            return None;
        }
        Some(Self { prefix, suffix: suffix.into(), value: value.into() })
    }

    /// The full name.
    pub fn name(&self) -> Vec<u8> {
        let prefix =
            PREFIXES.iter().find(|(index, ..)| *index == self.prefix).map_or(&b""[..], |(_, text, _)| text);
        [prefix, &self.suffix].concat()
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Orders attributes by name alone.
    pub fn cmp_name(&self, other: &Self) -> std::cmp::Ordering {
        (self.prefix, &self.suffix).cmp(&(other.prefix, &other.suffix))
    }

    fn stored_size(&self) -> usize {
        (4 + self.suffix.len() + self.value.len()).next_multiple_of(4)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        // Both fit: `new` and the 255 bytes of a full name see to it.
        out.extend_from_slice(&[self.suffix.len() as u8, self.prefix]);
        out.extend_from_slice(&(self.value.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.suffix);
        out.extend_from_slice(&self.value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// The shared area: attributes that at least two inodes have.
pub(super) struct SharedXattrs<'a> {
    /// Index of each in units of four bytes from the start of the area.
    index: BTreeMap<&'a Xattr, u32>,
    /// The area's bytes.
    pub(super) bytes: Vec<u8>,
}

impl<'a> SharedXattrs<'a> {
    /// Collects what is worth sharing among the attributes of all inodes.
    pub(super) fn collect(all: impl Iterator<Item = &'a Xattr>) -> Self {
        let mut uses: BTreeMap<&Xattr, u32> = BTreeMap::new();
        for xattr in all {
            *uses.entry(xattr).or_default() += 1;
        }
        let mut shared = Self { index: BTreeMap::new(), bytes: Vec::new() };
        for (xattr, count) in uses {
            if count > 1 {
                shared.index.insert(xattr, (shared.bytes.len() / 4) as u32);
                xattr.encode(&mut shared.bytes);
            }
        }
        shared
    }

    /// Bytes that `xattrs` take behind their inode; a multiple of four, 0 if there are none.
    pub(super) fn body_size(&self, xattrs: &[Xattr]) -> Result<usize, Error> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let (shared, inline) = self.split(xattrs);
        let entries: usize = inline.iter().map(|xattr| xattr.stored_size()).sum();
        let bytes = BODY_HEADER_SIZE + 4 * shared.len() + entries;
        if body_count(bytes) > usize::from(u16::MAX) {
            return Err(Error::XattrsTooLarge { bytes });
        }
        Ok(bytes)
    }

    /// Appends the body that [`SharedXattrs::body_size`] measured.
    pub(super) fn encode_body(&self, xattrs: &[Xattr], out: &mut Vec<u8>) {
        if xattrs.is_empty() {
            return;
        }
        let (shared, inline) = self.split(xattrs);
        out.extend_from_slice(&[0, 0, 0, 0, shared.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
        for id in shared {
            out.extend_from_slice(&id.to_le_bytes());
        }
        for xattr in inline {
            xattr.encode(out);
        }
    }

    fn split<'x>(&self, xattrs: &'x [Xattr]) -> (Vec<u32>, Vec<&'x Xattr>) {
        let (mut shared, mut inline) = (Vec::new(), Vec::new());
        for xattr in xattrs {
            match self.index.get(xattr) {
                Some(&id) if shared.len() < MAX_SHARED => shared.push(id),
                _ => inline.push(xattr),
            }
        }
        (shared, inline)
    }
}

/// `i_xattr_icount` for a body of `bytes` bytes.
pub(super) fn body_count(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes - BODY_HEADER_SIZE) / 4 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_and_joined_again() {
        for name in [&b"user.a"[..], b"security.capability", b"trusted.x.y", b"system.posix_acl_access"] {
            assert_eq!(Xattr::new(name, b"v").expect("known namespace").name(), name);
        }
    }

    #[test]
    fn what_erofs_cannot_name_is_refused() {
        for name in [&b"user."[..], b"system.nfs4_acl", b"system.posix_acl_access2", b"com.apple.x", b""] {
            assert_eq!(Xattr::new(name, b"v"), None);
        }
        assert_eq!(Xattr::new(b"user.big", &vec![0; 65536]), None);
        assert_eq!(Xattr::new(&[b"user.", &[b'x'; 251][..]].concat(), b""), None);
    }

    #[test]
    fn a_body_has_the_size_it_was_measured_to_have() {
        let common = Xattr::new(b"user.common", b"value").expect("valid");
        let own = Xattr::new(b"user.own", b"").expect("valid");
        let (a, b) = ([common.clone(), own], [common]);
        let shared = SharedXattrs::collect(a.iter().chain(&b));
        for xattrs in [&a[..], &b, &[]] {
            let mut body = Vec::new();
            shared.encode_body(xattrs, &mut body);
            assert_eq!(body.len(), shared.body_size(xattrs).expect("fits"));
        }
        assert_eq!(shared.bytes.len(), 16);
    }
}
