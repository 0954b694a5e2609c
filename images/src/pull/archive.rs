//! A tar file as a set of named members that can be read at any position.
//!
//! Its headers are walked once; contents are read when they are needed. A compressed archive is decompressed into an
//! unnamed file in the store first, because compressed bytes cannot be read at a position.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ArchiveError;
use crate::manifest::Compression;
use crate::store::{Store, StoreError};

/// An image has a few members per layer; more is an attack on the memory.
const MAX_MEMBERS: usize = 100_000;

/// A compressed archive that grows beyond this is taken for a decompression bomb.
const MAX_DECOMPRESSED_BYTES: u64 = 64 << 30;

/// Symbolic links within an archive (old versions of Docker share layers that way) are followed this often.
const MAX_LINKS: usize = 4;

/// A tar file with its table of contents.
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: BTreeMap<String, Member>,
}

enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// A member's bytes.
pub(super) struct MemberReader {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Archive {
    /// Opens an archive; a compressed one is decompressed below `store`, and so is a copy made of what cannot be read
    /// at any position.
    pub(super) fn open(path: &Path, store: &Store) -> Result<Self, super::PullError> {
        let failed = |source| ArchiveError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            return Self::of_file(path, file, store);
        }
        Self::spool(path, &mut file, store)
    }

    /// Copies a stream, which errors call `path`, and opens that.
    pub(super) fn spool(path: &Path, stream: &mut dyn Read, store: &Store) -> Result<Self, super::PullError> {
        let file = copy_aside(path, stream, store)?;
        Self::of_file(path, file, store)
    }

    fn of_file(path: &Path, mut file: File, store: &Store) -> Result<Self, super::PullError> {
        let failed = |source| ArchiveError::Read { path: path.to_owned(), source };
        let mut head = Vec::new();
        file.by_ref().take(8).read_to_end(&mut head).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let file = match Compression::sniff(&head) {
            Compression::None => file,
            Compression::Gzip => {
                copy_aside(path, flate2::bufread::MultiGzDecoder::new(BufReader::new(file)), store)?
            }
            Compression::Zstd => {
                copy_aside(path, zstd::stream::read::Decoder::new(file).map_err(failed)?, store)?
            }
        };
        let members = table_of_contents(path, &file)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// Where the archive is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The size of a member; `None` if there is no such file.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.find(name).map(|(_, size)| size)
    }

    /// The bytes of a member from `offset` on.
    pub(super) fn read(&self, name: &str, offset: u64) -> Option<MemberReader> {
        let (start, size) = self.find(name)?;
        let position = start.checked_add(offset.min(size))?;
        Some(MemberReader { file: self.file.clone(), position, end: start.checked_add(size)? })
    }

    /// A whole member of at most `limit` bytes; `None` if there is none, or it is larger.
    pub(super) fn read_all(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        if self.size(name).is_none_or(|size| size > limit) {
            return Ok(None);
        }
        let Some(mut reader) = self.read(name, 0) else { return Ok(None) };
        let mut bytes = Vec::new();
        reader
            .read_to_end(&mut bytes)
            .map_err(|source| ArchiveError::Read { path: self.path.clone(), source })?;
        Ok(Some(bytes))
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normalize(name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::File { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => {
                    let parent = Path::new(&name).parent()?;
                    name = normalize(parent.join(target).to_str()?)?;
                }
            }
        }
        None
    }
}

/// The reader of archives quotes the bytes that it does not understand, over several lines.
fn without_content(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    std::io::Error::new(error.kind(), line.escape_debug().to_string())
}

fn table_of_contents(path: &Path, file: &File) -> Result<BTreeMap<String, Member>, ArchiveError> {
    let bad = |source| ArchiveError::Tar { path: path.to_owned(), source: without_content(source) };
    let length = file.metadata().map_err(bad)?.len();
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(BufReader::with_capacity(4096, file));
    for entry in archive.entries_with_seek().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let Some(name) = std::str::from_utf8(&entry.path_bytes()).ok().and_then(normalize) else { continue };
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(bad(std::io::ErrorKind::UnexpectedEof.into()));
            }
            members.insert(name, Member::File { offset, size });
        } else if kind.is_symlink() {
            let target =
                entry.link_name_bytes().and_then(|target| String::from_utf8(target.into_owned()).ok());
            if let Some(target) = target {
                members.insert(name, Member::Link(target));
            }
        }
        if members.len() > MAX_MEMBERS {
            return Err(bad(std::io::Error::other(format!("it has more than {MAX_MEMBERS} members"))));
        }
    }
    Ok(members)
}

/// A member's name without `./`, and `..` resolved; `None` if it leads outside.
fn normalize(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Copies into a file without a name, which vanishes when it is closed, whatever happens.
fn copy_aside(path: &Path, reader: impl Read, store: &Store) -> Result<File, super::PullError> {
    let dir = store.blobs.partial_dir();
    let failed = |source| StoreError::file("write an unpacked archive in", &dir, source);
    let mut file = tempfile::tempfile_in(&dir).map_err(failed)?;
    let mut limited = Tagged { reader: reader.take(MAX_DECOMPRESSED_BYTES + 1), failed: false };
    let copied = std::io::copy(&mut limited, &mut file);
    let size = match copied {
        Ok(size) => size,
        Err(source) if limited.failed => {
            return Err(ArchiveError::Tar { path: path.to_owned(), source }.into());
        }
        Err(source) => return Err(failed(source).into()),
    };
    if size > MAX_DECOMPRESSED_BYTES {
        return Err(ArchiveError::Bomb { path: path.to_owned(), limit: MAX_DECOMPRESSED_BYTES }.into());
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}

/// Remembers that the reading side of a copy failed.
struct Tagged<R> {
    reader: R,
    failed: bool,
}

impl<R: Read> Read for Tagged<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let result = self.reader.read(buffer);
        self.failed |= result.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::Interrupted);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalized_and_never_lead_outside() {
        assert_eq!(normalize("./a//b/../c").unwrap(), "a/c");
        assert_eq!(normalize("/a").unwrap(), "a");
        assert_eq!(normalize("../a"), None);
        assert_eq!(normalize("a/../../b"), None);
    }
}
