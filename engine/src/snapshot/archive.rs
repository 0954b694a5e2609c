//! A snapshot as one file, to be carried to another machine: a tar archive, compressed with zstd.
//!
//! ```text
//! snapshot.json  vm/state  vm/memory  rootfs.erofs  agent.erofs  [disk.ext4]  digests.json
//! each but the last:  {"len":N,"extents":[[offset,len],…]}\n  data of the extents, one after the other
//! digests.json:       {"schema":…,"files":{NAME: SHA-256 of the entry,…}}
//! ```
//!
//! Holes are not in it. An archive may come from anybody: names are taken from the list above only, extents are
//! checked against the length, and nothing gets a name in the store before all digests were found right.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom as Whence, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::store::Draft;
use super::{DISK, MACHINE, Manifest, ROOTFS, SnapshotError, SnapshotStore, file};
use crate::run::machine::AGENT_DISK;

/// Version of the format.
pub const SCHEMA: &str = "lighter.snapshot-archive.v1";
/// Name of the last entry.
const DIGESTS: &str = "digests.json";
/// Fast: memory is written while somebody waits.
pub(super) const LEVEL: i32 = 1;
/// Longest description of a file's extents. Stops an archive from filling memory.
const MAX_LAYOUT: u64 = 16 << 20;
/// Longest file: no disk and no memory of ours is larger.
const MAX_LEN: u64 = 1 << 44;

/// Where a file's data is.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Layout {
    len: u64,
    extents: Vec<(u64, u64)>,
}

/// The last entry.
#[derive(Debug, Deserialize, Serialize)]
struct Digests {
    schema: String,
    files: BTreeMap<String, String>,
}

/// Paths of a snapshot's files within it, and whether there is always one.
pub(super) fn files() -> [(PathBuf, bool); 6] {
    [
        (Manifest::FILE.into(), true),
        (Path::new(MACHINE).join("state"), true),
        (Path::new(MACHINE).join("memory"), true),
        (ROOTFS.into(), true),
        (AGENT_DISK.into(), true),
        (DISK.into(), false),
    ]
}

/// Writes the snapshot in `directory` to the new file `target`.
pub fn export(directory: &Path, target: &Path) -> Result<(), SnapshotError> {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    if target.exists() {
        return Err(file("write", target)(io::ErrorKind::AlreadyExists.into()));
    }
    let mut options = File::options();
    let open = options.write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let result = open.and_then(|out| {
        let out = write(directory, BufWriter::with_capacity(1 << 20, out))?.into_inner()?;
        out.sync_all()?;
        std::fs::rename(&partial, target)
    });
    result.map_err(|source| {
        let _ = std::fs::remove_file(&partial);
        file("write", target)(source)
    })
}

fn write<W: Write>(directory: &Path, out: W) -> io::Result<W> {
    let mut archive = tar::Builder::new(zstd::Encoder::new(out, LEVEL)?);
    let mut digests = Digests { schema: SCHEMA.to_owned(), files: BTreeMap::new() };
    for (name, _) in files() {
        let path = directory.join(&name);
        let source = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == Path::new(DISK) => continue,
            source => source?,
        };
        let layout = Layout::of(&source)?;
        let mut head = serde_json::to_vec(&layout)?;
        head.push(b'\n');
        let data: u64 = layout.extents.iter().map(|(_, len)| len).sum();
        let content = head.as_slice().chain(Extents::new(&source, layout));
        let mut content = Hashing { inner: content, hash: Sha256::new() };
        archive.append_data(&mut header(head.len() as u64 + data), &name, &mut content)?;
        digests.files.insert(name.to_string_lossy().into_owned(), hex(content.hash));
    }
    let digests = serde_json::to_vec(&digests)?;
    archive.append_data(&mut header(digests.len() as u64), DIGESTS, digests.as_slice())?;
    archive.into_inner()?.finish()
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header
}

/// Reads the archive `source` into a draft of `store`.
pub fn import(store: &SnapshotStore, source: &Path) -> Result<Draft, SnapshotError> {
    let draft = store.draft()?;
    let directory = draft.directory();
    let unusable = |error: io::Error| file("import", source)(error);
    std::fs::create_dir(directory.join(MACHINE)).map_err(file("make", directory))?;
    let input = File::open(source).map_err(unusable)?;
    read(directory, BufReader::with_capacity(1 << 20, input)).map_err(unusable)?;
    Manifest::read(directory)?;
    Ok(draft)
}

fn read(directory: &Path, input: impl io::BufRead) -> io::Result<()> {
    let mut archive = tar::Archive::new(zstd::Decoder::with_buffer(input)?);
    let known = files();
    let mut found = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if name == Path::new(DIGESTS) {
            return check(&known, &found, entry);
        }
        if !known.iter().any(|(known, _)| *known == name) || found.contains_key(&name) {
            return Err(invalid(format!("{name:?} has no place in a snapshot")));
        }
        let mut options = File::options();
        let target = options.write(true).create_new(true).mode(0o600).open(directory.join(&name))?;
        let mut content = BufReader::new(Hashing { inner: &mut entry, hash: Sha256::new() });
        Layout::read(&mut content)?.write(&mut content, &target)?;
        found.insert(name, hex(content.into_inner().hash));
    }
    Err(invalid(format!("it ends before {DIGESTS}")))
}

/// Whether the archive was whole and its files are what they were.
fn check(known: &[(PathBuf, bool)], found: &BTreeMap<PathBuf, String>, entry: impl Read) -> io::Result<()> {
    let digests: Digests = serde_json::from_reader(entry.take(MAX_LAYOUT))?;
    if digests.schema != SCHEMA {
        return Err(invalid(format!("its format is {:?}, not {SCHEMA:?}", digests.schema)));
    }
    for (name, always) in known {
        let wanted = digests.files.get(&*name.to_string_lossy());
        if found.get(name) != wanted || (*always && wanted.is_none()) {
            return Err(invalid(format!("{} is missing or damaged", name.display())));
        }
    }
    Ok(())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Layout {
    pub(super) fn of(source: &File) -> io::Result<Self> {
        let len = source.metadata()?.len();
        let (mut extents, mut position) = (Vec::new(), 0);
        while position < len {
            let data = match seek(source, Whence::Data(position)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            position = seek(source, Whence::Hole(data))?;
            extents.push((data, position - data));
        }
        Ok(Layout { len, extents })
    }

    pub(super) fn read(content: &mut impl io::BufRead) -> io::Result<Self> {
        let mut line = Vec::new();
        content.by_ref().take(MAX_LAYOUT).read_until(b'\n', &mut line)?;
        let layout: Self = serde_json::from_slice(&line)?;
        let mut end = 0;
        for (start, len) in &layout.extents {
            let next = start.checked_add(*len).filter(|next| *start >= end && *next <= layout.len);
            end = next.ok_or_else(|| invalid(format!("impossible extent {start}+{len}")))?;
        }
        if layout.len > MAX_LEN {
            return Err(invalid(format!("a file of {} bytes", layout.len)));
        }
        Ok(layout)
    }

    /// Writes what follows to where it belongs in `target`.
    pub(super) fn write(&self, content: &mut impl Read, mut target: &File) -> io::Result<()> {
        target.set_len(self.len)?;
        for (start, len) in &self.extents {
            target.seek(SeekFrom::Start(*start))?;
            if io::copy(&mut content.by_ref().take(*len), &mut target)? != *len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        match content.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(invalid("there is more than its extents hold".to_owned())),
        }
    }
}

/// The data of a file, without its holes.
pub(super) struct Extents<'f> {
    source: &'f File,
    left: std::vec::IntoIter<(u64, u64)>,
    /// Bytes that are left of the extent at the file's position.
    piece: u64,
}

impl<'f> Extents<'f> {
    /// What `layout` says is in `source`.
    pub(super) fn new(source: &'f File, layout: Layout) -> Self {
        Self { source, left: layout.extents.into_iter(), piece: 0 }
    }
}

impl Read for Extents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece == 0 {
            let Some((start, len)) = self.left.next() else { return Ok(0) };
            self.source.seek(SeekFrom::Start(start))?;
            self.piece = len;
        }
        let count = self.source.take(self.piece).read(buffer)?;
        // Cut off meanwhile, which the size in the archive would not tell.
        if count == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.piece -= count as u64;
        Ok(count)
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;
    use crate::container::id::ContainerId;
    use crate::container::spec::tests::example;
    use crate::container::test_dirs;

    fn snapshot(directory: &Path) {
        std::fs::create_dir_all(directory.join(MACHINE)).unwrap();
        for (name, _) in files() {
            std::fs::write(directory.join(&name), format!("{} is here", name.display())).unwrap();
        }
        let disk = File::options().write(true).open(directory.join(DISK)).unwrap();
        disk.set_len(1 << 32).unwrap();
        disk.write_all_at(b"far away", 3 << 30).unwrap();
        let manifest = Manifest {
            schema: super::super::SCHEMA.into(),
            created_ns: 7,
            container: "it".into(),
            paused_us: 1,
            spec: example(&ContainerId::random()),
        };
        std::fs::write(directory.join(Manifest::FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    #[test]
    fn what_was_exported_is_imported_with_its_holes() {
        let base = tempfile::tempdir().unwrap();
        let (directory, archive) = (base.path().join("s"), base.path().join("a"));
        snapshot(&directory);
        export(&directory, &archive).unwrap();
        assert!(archive.metadata().unwrap().len() < 1 << 16);
        assert!(export(&directory, &archive).is_err(), "nothing is written over");
        let store = SnapshotStore::new(&test_dirs(base.path()));
        let draft = import(&store, &archive).unwrap();
        for (name, _) in files().into_iter().filter(|(name, _)| name != Path::new(DISK)) {
            let read = |directory: &Path| std::fs::read(directory.join(&name)).unwrap();
            assert_eq!(read(draft.directory()), read(&directory), "{name:?}");
        }
        let disk = File::open(draft.directory().join(DISK)).unwrap();
        let mut bytes = [0; 8];
        disk.read_exact_at(&mut bytes, 3 << 30).unwrap();
        let meta = disk.metadata().unwrap();
        assert!(&bytes == b"far away" && meta.len() == 1 << 32 && meta.blocks() < 1000);
    }

    #[test]
    fn damaged_archives_are_refused_and_leave_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (directory, archive) = (base.path().join("s"), base.path().join("a"));
        snapshot(&directory);
        export(&directory, &archive).unwrap();
        let whole = std::fs::read(&archive).unwrap();
        let store = SnapshotStore::new(&test_dirs(base.path()));
        let refused = |bytes: &[u8]| {
            std::fs::write(&archive, bytes).unwrap();
            assert!(import(&store, &archive).is_err());
        };
        (0..whole.len()).step_by(97).for_each(|len| refused(&whole[..len]));
        // Uncompressed, so that changes reach the tar archive.
        let plain = zstd::decode_all(whole.as_slice()).unwrap();
        for at in (0..plain.len()).step_by(101) {
            let mut changed = plain.clone();
            changed[at] ^= 0x10;
            // Some bytes mean nothing, such as a header's padding; then all files are what they were.
            std::fs::write(&archive, zstd::encode_all(changed.as_slice(), 1).unwrap()).unwrap();
            if let Ok(draft) = import(&store, &archive) {
                let state = Path::new(MACHINE).join("state");
                assert_eq!(
                    std::fs::read(draft.directory().join(&state)).unwrap(),
                    std::fs::read(directory.join(&state)).unwrap()
                );
            }
        }
        let left = base.path().join("data/snapshots");
        assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);
    }

    #[test]
    fn extents_that_overlap_or_leave_the_file_are_refused() {
        for text in [
            r#"{"len":10,"extents":[[0,11]]}"#,
            r#"{"len":10,"extents":[[0,5],[4,5]]}"#,
            r#"{"len":10,"extents":[[18446744073709551615,2]]}"#,
            r#"{"len":99999999999999999,"extents":[]}"#,
            "no layout",
        ] {
            assert!(Layout::read(&mut text.as_bytes()).is_err(), "{text}");
        }
    }
}
