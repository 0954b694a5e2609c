//! The envelope of a state file: sections with checksums behind a table. `docs/snapshot-format.md` has the layout.
//!
//! The file may come from anybody: every length is checked against what is there before it is used.

use crc32fast::hash;

/// First bytes of a state file.
const MAGIC: [u8; 8] = *b"lighter\0";
/// Version of the envelope and of everything in it. Another one is refused.
pub const FORMAT_VERSION: u32 = 2;
/// Magic, version, number of sections.
const HEADER_SIZE: usize = 16;
/// Kind, checksum, length.
const ENTRY_SIZE: usize = 16;
/// Checksum of everything before it.
const TABLE_CHECKSUM_SIZE: usize = 4;
/// More sections than any version has: stops a table from being all of the work.
const MAX_SECTIONS: usize = 64;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Section {
    /// [`super::Fingerprint`].
    Fingerprint = 1,
    /// [`crate::vm::VmState`].
    Vm = 2,
    /// [`super::Times`].
    Times = 3,
    /// [`super::Identity`].
    Identity = 4,
    /// What whoever took the snapshot wants to find in it again; may be missing.
    Note = 5,
    /// Memory that can be plugged, in MiB as postcard; missing where there is none.
    Hotplug = 6,
}

/// Why bytes are no state file of this version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It begins with something else.
    #[error("it is no snapshot of lighter")]
    Magic,
    /// Another version.
    #[error(
        "it has format version {found}, this lighter reads {FORMAT_VERSION}: make it anew with this lighter"
    )]
    Version {
        /// The one in the file.
        found: u32,
    },
    /// It ends too early.
    #[error("it is truncated: {needed} bytes are needed, {present} are there")]
    Truncated {
        /// Bytes that its table speaks of.
        needed: u64,
        /// Bytes that are there.
        present: u64,
    },
    /// Too many sections.
    #[error("it claims {count} sections, at most {MAX_SECTIONS} are possible")]
    Sections {
        /// The number in the file.
        count: u32,
    },
    /// Bits changed.
    #[error("its {what} is damaged: the checksum is wrong")]
    Checksum {
        /// What the checksum covers.
        what: String,
    },
    /// A section is missing.
    #[error("it has no {0:?} section")]
    Missing(Section),
}

/// Puts sections into one file.
pub fn write(sections: &[(Section, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(MAGIC);
    file.extend(FORMAT_VERSION.to_le_bytes());
    file.extend((sections.len() as u32).to_le_bytes());
    for (section, body) in sections {
        file.extend((*section as u32).to_le_bytes());
        file.extend(hash(body).to_le_bytes());
        file.extend((body.len() as u64).to_le_bytes());
    }
    let checksum = hash(&file);
    file.extend(checksum.to_le_bytes());
    for (_, body) in sections {
        file.extend(body);
    }
    file
}

/// The sections of a file, checked.
#[derive(Debug)]
pub struct Envelope<'a> {
    sections: Vec<(u32, &'a [u8])>,
}

impl<'a> Envelope<'a> {
    /// Reads the table and checks every section.
    pub fn parse(file: &'a [u8]) -> Result<Self, EnvelopeError> {
        if !file.starts_with(&MAGIC) {
            return Err(EnvelopeError::Magic);
        }
        let version = word(file, 8)?;
        if version != FORMAT_VERSION {
            return Err(EnvelopeError::Version { found: version });
        }
        let count = word(file, 12)?;
        if count as usize > MAX_SECTIONS {
            return Err(EnvelopeError::Sections { count });
        }
        let table_end = HEADER_SIZE + count as usize * ENTRY_SIZE;
        let table = slice(file, 0, table_end as u64)?;
        if word(file, table_end)? != hash(table) {
            return Err(EnvelopeError::Checksum { what: "table".into() });
        }
        let mut sections = Vec::with_capacity(count as usize);
        let mut start = (table_end + TABLE_CHECKSUM_SIZE) as u64;
        for entry in (HEADER_SIZE..table_end).step_by(ENTRY_SIZE) {
            let (kind, checksum) = (word(file, entry)?, word(file, entry + 4)?);
            let len = u64::from(word(file, entry + 8)?) | u64::from(word(file, entry + 12)?) << 32;
            let body = slice(file, start, len)?;
            if hash(body) != checksum {
                return Err(EnvelopeError::Checksum { what: format!("section {kind}") });
            }
            sections.push((kind, body));
            start += len;
        }
        Ok(Envelope { sections })
    }

    /// The body of `section`.
    pub fn section(&self, section: Section) -> Result<&'a [u8], EnvelopeError> {
        let found = self.sections.iter().find(|(kind, _)| *kind == section as u32);
        found.map(|(_, body)| *body).ok_or(EnvelopeError::Missing(section))
    }
}

/// `len` bytes from `start` on, if they are there.
fn slice(file: &[u8], start: u64, len: u64) -> Result<&[u8], EnvelopeError> {
    let needed = start.saturating_add(len);
    let truncated = EnvelopeError::Truncated { needed, present: file.len() as u64 };
    let range = usize::try_from(start).ok().zip(usize::try_from(needed).ok());
    range.and_then(|(start, end)| file.get(start..end)).ok_or(truncated)
}

fn word(file: &[u8], at: usize) -> Result<u32, EnvelopeError> {
    let bytes = slice(file, at as u64, 4)?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("invariant: the slice has four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        write(&[(Section::Fingerprint, b"print".to_vec()), (Section::Vm, vec![7; 1000])])
    }

    #[test]
    fn what_was_written_is_read() {
        let file = file();
        let envelope = Envelope::parse(&file).unwrap();
        assert_eq!(envelope.section(Section::Fingerprint), Ok(&b"print"[..]));
        assert_eq!(envelope.section(Section::Vm), Ok(&[7; 1000][..]));
        assert_eq!(envelope.section(Section::Times), Err(EnvelopeError::Missing(Section::Times)));
    }

    #[test]
    fn every_truncation_is_refused() {
        let file = file();
        for len in 0..file.len() {
            assert!(Envelope::parse(&file[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let file = file();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                assert!(Envelope::parse(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut file = file();
        file[8] = 9;
        assert_eq!(Envelope::parse(&file).unwrap_err(), EnvelopeError::Version { found: 9 });
    }
}
