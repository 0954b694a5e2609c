//! Files as a tar stream: ustar, with PAX records for what does not fit it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use tar::{EntryType, Header};

use crate::attributes::{self, Attribute};
use crate::error::{ArchiveError, On as _};

type Result<T> = std::result::Result<T, ArchiveError>;

/// Bytes of a file read at once.
const READ_CHUNK: usize = 1 << 20;

/// Bytes of a name in a ustar header.
const USTAR_NAME: usize = 100;

/// The largest owner in a ustar header: seven octal digits.
const USTAR_ID: u64 = 0o7_777_777;

/// The largest size in a ustar header: eleven octal digits.
const USTAR_SIZE: u64 = 0o77_777_777_777;

/// Where a tar stream goes.
pub trait Outlet: Write {
    /// Takes the content of the file at `path`, all of its `size` bytes, in another way than by [`Write`]; `false` if
    /// it has none.
    fn take_content(&mut self, path: &Path, size: u64) -> io::Result<bool> {
        let _ = (path, size);
        Ok(false)
    }
}

impl Outlet for Vec<u8> {}

/// A tar stream on its way out.
pub struct Packer<'a> {
    out: &'a mut dyn Outlet,
    /// The name of each file with several names, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<'a> Packer<'a> {
    /// A stream to `out`, empty so far.
    pub fn new(out: &'a mut dyn Outlet) -> Self {
        Self { out, links: HashMap::new(), buffer: Vec::new() }
    }

    /// Adds what is at `path` as `name`; of a directory only itself. A socket is left out, as tar has none.
    pub fn add(&mut self, name: &[u8], path: &Path, metadata: &Metadata) -> Result<()> {
        let kind = metadata.file_type();
        let mut entry = Entry::new(name, metadata);
        if !kind.is_dir() && metadata.nlink() > 1 {
            let first = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.to_vec());
            if first != name {
                entry.header.set_entry_type(EntryType::Link);
                entry.link = first.clone();
                return self.head(entry, path);
            }
        }
        entry.attributes = attributes::read(path)?;
        if kind.is_file() {
            entry.header.set_entry_type(EntryType::Regular);
            entry.size = metadata.len();
            self.head(entry, path)?;
            return self.content(path, metadata.len());
        }
        if kind.is_dir() {
            entry.header.set_entry_type(EntryType::Directory);
            entry.name.push(b'/');
        } else if kind.is_symlink() {
            entry.header.set_entry_type(EntryType::Symlink);
            entry.link = std::fs::read_link(path).on("read the link", path)?.as_os_str().as_bytes().to_vec();
        } else if kind.is_fifo() {
            entry.header.set_entry_type(EntryType::Fifo);
        } else if kind.is_char_device() || kind.is_block_device() {
            entry.header.set_entry_type(if kind.is_char_device() {
                EntryType::Char
            } else {
                EntryType::Block
            });
            let device = metadata.rdev();
            let numbers = entry
                .header
                .set_device_major(rustix::fs::major(device))
                .and_then(|()| entry.header.set_device_minor(rustix::fs::minor(device)));
            numbers.on("describe the device", path)?;
        } else {
            return Ok(());
        }
        self.head(entry, path)
    }

    /// Adds an empty file, as a whiteout is.
    pub fn mark(&mut self, name: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        let (link, attributes) = (Vec::new(), Vec::new());
        let entry = Entry { header, name: name.to_vec(), link, size: 0, mtime: 0, ids: (0, 0), attributes };
        self.head(entry, Path::new("a whiteout"))
    }

    /// Ends the stream.
    pub fn finish(self) -> Result<()> {
        let end = self.out.write_all(&[0; 1024]).and_then(|()| self.out.flush());
        end.on("send", Path::new("the archive"))
    }

    fn head(&mut self, entry: Entry, path: &Path) -> Result<()> {
        let (extension, header) = entry.encode();
        if !extension.is_empty() {
            let mut pax = Header::new_ustar();
            pax.set_entry_type(EntryType::XHeader);
            set_name(&mut pax, b"pax");
            pax.set_mode(0o644);
            pax.set_size(extension.len() as u64);
            pax.set_cksum();
            self.send(pax.as_bytes(), path)?;
            self.send(&extension, path)?;
            self.pad(extension.len() as u64, path)?;
        }
        self.send(header.as_bytes(), path)
    }

    /// Exactly `size` bytes, whatever becomes of the file meanwhile.
    fn content(&mut self, path: &Path, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.out.take_content(path, size).on("send", path)? {
            return self.pad(size, path);
        }
        let mut file = File::open(path).on("open", path)?;
        self.buffer.resize(READ_CHUNK, 0);
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(READ_CHUNK).min(READ_CHUNK);
            let part = self.buffer.get_mut(..wanted).unwrap_or_default();
            let mut count = file.read(part).on("read", path)?;
            if count == 0 {
                // It has become shorter.
                part.fill(0);
                count = wanted;
            }
            let sent = self.out.write_all(part.get(..count).unwrap_or_default());
            sent.on("send", path)?;
            left -= count as u64;
        }
        self.pad(size, path)
    }

    fn pad(&mut self, size: u64, path: &Path) -> Result<()> {
        let over = usize::try_from(size % 512).unwrap_or_default();
        if over == 0 { Ok(()) } else { self.send(&[0; 512][over..], path) }
    }

    fn send(&mut self, bytes: &[u8], path: &Path) -> Result<()> {
        self.out.write_all(bytes).on("send", path)
    }
}

/// One entry before it is encoded.
struct Entry {
    header: Header,
    name: Vec<u8>,
    link: Vec<u8>,
    size: u64,
    mtime: i64,
    ids: (u64, u64),
    attributes: Vec<Attribute>,
}

impl Entry {
    fn new(name: &[u8], metadata: &Metadata) -> Self {
        let mut header = Header::new_ustar();
        header.set_mode(metadata.mode() & 0o7777);
        Self {
            header,
            name: name.to_vec(),
            link: Vec::new(),
            size: 0,
            mtime: metadata.mtime(),
            ids: (metadata.uid().into(), metadata.gid().into()),
            attributes: Vec::new(),
        }
    }

    /// PAX records for what ustar cannot hold, and the ustar header.
    fn encode(self) -> (Vec<u8>, Header) {
        let Self { mut header, name, link, size, mtime, ids: (uid, gid), attributes } = self;
        let mut pax = Vec::new();
        if name.len() > USTAR_NAME {
            record(&mut pax, b"path", &name);
        }
        if link.len() > USTAR_NAME {
            record(&mut pax, b"linkpath", &link);
        }
        let mut number = |key: &[u8], value: u64, limit: u64| {
            if value <= limit {
                return value;
            }
            record(&mut pax, key, value.to_string().as_bytes());
            0
        };
        header.set_size(number(b"size", size, USTAR_SIZE));
        header.set_uid(number(b"uid", uid, USTAR_ID));
        header.set_gid(number(b"gid", gid, USTAR_ID));
        match u64::try_from(mtime) {
            Ok(seconds) => header.set_mtime(number(b"mtime", seconds, USTAR_SIZE)),
            Err(_) => record(&mut pax, b"mtime", mtime.to_string().as_bytes()),
        }
        for (key, value) in &attributes {
            record(&mut pax, &[b"SCHILY.xattr.", &key[..]].concat(), value);
        }
        set_name(&mut header, &name);
        let kept = link.len().min(USTAR_NAME);
        if let Some(ustar) = header.as_ustar_mut()
            && let (Some(place), Some(link)) = (ustar.linkname.get_mut(..kept), link.get(..kept))
        {
            place.copy_from_slice(link);
        }
        header.set_cksum();
        (pax, header)
    }
}

fn set_name(header: &mut Header, name: &[u8]) {
    let kept = name.len().min(USTAR_NAME);
    if let Some(ustar) = header.as_ustar_mut()
        && let (Some(place), Some(name)) = (ustar.name.get_mut(..kept), name.get(..kept))
    {
        place.copy_from_slice(name);
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend(key);
    pax.push(b'=');
    pax.extend(value);
    pax.push(b'\n');
}
