//! A tar stream becomes files.
//!
//! Every entry is made by its name in a directory that was opened before. [`Trust`] decides how that directory is
//! found: where the stream comes from a guest, no link, whether it was there or came with the stream, leads out of the
//! destination (`openat2`, `RESOLVE_BENEATH`).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use crate::error::{ArchiveError, On as _};
use crate::stream::{Entry, Inlet, Stream};
use crate::target::Target;

type Result<T> = std::result::Result<T, ArchiveError>;

/// Bytes written at once.
const WRITE_CHUNK: usize = 1 << 20;

/// Bits of a mode that give a program the power of its owner.
const SET_ID: u32 = 0o6000;

/// Attributes that are an overlay's, or the kernel's own business.
const REFUSED_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.", b"security.selinux"];

/// Who made the stream, in the eyes of whoever owns the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The destination's own owner: links are followed, devices are made, every attribute is set.
    Owner,
    /// Somebody else: nothing leads out of the destination, no device, no attribute. `set_id`: programs may keep the
    /// bits that run them as their owner.
    Guest {
        /// Whether to keep them.
        set_id: bool,
    },
}

/// Whom the files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Whoever the stream says.
    Kept,
    /// Root.
    Root,
    /// Whoever extracts.
    Own,
}

/// How to extract.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Who made the stream.
    pub trust: Trust,
    /// Whom the files belong to.
    pub owners: Owners,
}

/// Writes all of `input` to `target`. Devices that are not to be trusted are left out, and `left_out` is told.
pub fn extract(
    input: &mut dyn Inlet,
    target: &Target,
    options: Options,
    left_out: &mut dyn FnMut(&Path),
) -> Result<()> {
    let stream = Path::new("the archive");
    let mut archive = Stream::new(input);
    let mut extraction = Extraction { target, options, parent: None, buffer: vec![0; WRITE_CHUNK] };
    // Finished last, the deepest first: what is made in a directory changes its time.
    let mut directories = Vec::new();
    while let Some(entry) = archive.next_entry().on("read", stream)? {
        let Some(path) = extraction.place(&entry.name)? else { continue };
        if entry.header.entry_type() == EntryType::Directory {
            extraction.make_directory(&path)?;
            directories.push((path, entry));
        } else if !extraction.make(&path, &entry, &mut archive)? {
            left_out(&path);
        }
    }
    directories.into_iter().rev().try_for_each(|(path, entry)| extraction.finish_directory(&path, &entry))
}

struct Extraction<'a> {
    target: &'a Target,
    options: Options,
    /// The directory of the last entry, which is mostly that of the next one.
    parent: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Extraction<'_> {
    /// Where an entry goes, from the target's directory on; `None` for that directory itself.
    fn place(&self, name: &[u8]) -> Result<Option<PathBuf>> {
        let mut path = self.target.root.clone().unwrap_or_default();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(part) => path.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    let shown = String::from_utf8_lossy(name);
                    return Err(ArchiveError::Refused(format!(
                        "the archive names {shown:?}, which leads outside"
                    )));
                }
            }
        }
        Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
    }

    /// Makes anything but a directory; `false` if it is left out.
    fn make(&mut self, path: &Path, entry: &Entry, archive: &mut Stream<'_>) -> Result<bool> {
        let (parent, name) = self.parent(path)?;
        let kind = entry.header.entry_type();
        match kind {
            EntryType::Link => {
                // It looks like the file that it is another name of.
                self.link(path, entry, (parent, name))?;
                return Ok(true);
            }
            EntryType::Symlink => {
                make_room(&parent, &name, path)?;
                rustix::fs::symlinkat(&entry.link[..], &parent, &name).on("make the link", path)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if self.options.trust != Trust::Owner {
                    return Ok(false);
                }
                make_room(&parent, &name, path)?;
                make_node(&parent, &name, entry).on("make the node", path)?;
            }
            EntryType::XGlobalHeader => return Ok(true),
            kind if kind.is_file() => {
                let file = self.make_file(&parent, &name, path, archive)?;
                self.finish(file, entry, path)?;
                return Ok(true);
            }
            _ => return Err(ArchiveError::refused(path, "an unknown kind of file")),
        }
        if let Some((uid, gid)) = self.owner(entry, path)? {
            rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .on("give an owner to", path)?;
        }
        if kind != EntryType::Symlink {
            rustix::fs::chmodat(&parent, &name, self.mode(entry, path)?, AtFlags::empty())
                .on("set the mode of", path)?;
        }
        rustix::fs::utimensat(&parent, &name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .on("set the time of", path)?;
        self.parent = Some((parent_of(path), parent));
        Ok(true)
    }

    fn link(&mut self, path: &Path, entry: &Entry, (parent, name): (OwnedFd, OsString)) -> Result<()> {
        let first = self.place(&entry.link)?.unwrap_or_default();
        if first == path {
            return Err(ArchiveError::refused(path, "a second name of itself"));
        }
        let (first_parent, first_name) = self.parent(&first)?;
        make_room(&parent, &name, path)?;
        rustix::fs::linkat(&first_parent, &first_name, &parent, &name, AtFlags::empty()).on("link", path)?;
        self.parent = Some((parent_of(path), parent));
        Ok(())
    }

    /// Makes a new file. One that something is mounted on cannot be replaced, so it is written over.
    fn make_file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        archive: &mut Stream<'_>,
    ) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let opened = match make_room(parent, name, path) {
            Err(ArchiveError::File { source, .. })
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) =>
            {
                rustix::fs::openat(parent, name, flags | OFlags::TRUNC, mode)
            }
            room => {
                room?;
                rustix::fs::openat(parent, name, flags | OFlags::CREATE | OFlags::EXCL, mode)
            }
        };
        let mut file = File::from(opened.on("make", path)?);
        if archive.put_content(&file).on("write", path)? {
            return Ok(file);
        }
        loop {
            let count = archive.content(&mut self.buffer).on("read the content of", path)?;
            if count == 0 {
                return Ok(file);
            }
            file.write_all(self.buffer.get(..count).unwrap_or_default()).on("write", path)?;
        }
    }

    /// Makes a directory and those around it. One that is there stays, also behind a link such as `lib -> usr/lib`.
    fn make_directory(&mut self, path: &Path) -> Result<()> {
        if self.open_directory(path, OFlags::PATH).is_ok() {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        make_room(&parent, &name, path)?;
        rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700)).on("make the directory", path)
    }

    fn finish_directory(&self, path: &Path, entry: &Entry) -> Result<()> {
        let directory = self.open_directory(path, OFlags::RDONLY).on("open the directory", path)?;
        self.finish(directory.into(), entry, path)
    }

    /// Gives a file or directory everything but its content. The owner first: a change of owner takes away set-user-ID
    /// bits and capabilities.
    fn finish(&self, file: File, entry: &Entry, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.owner(entry, path)? {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).on("give an owner to", path)?;
        }
        rustix::fs::fchmod(&file, self.mode(entry, path)?).on("set the mode of", path)?;
        for (name, value) in entry.attributes.iter().filter(|_| self.options.trust == Trust::Owner) {
            if REFUSED_ATTRIBUTES.iter().any(|refused| name.starts_with(refused)) {
                continue;
            }
            match rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty()) {
                // A file system that has none.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno).on("set an attribute of", path),
            }
        }
        rustix::fs::futimens(&file, &times(entry)).on("set the time of", path)
    }

    fn owner(&self, entry: &Entry, path: &Path) -> Result<Option<(Uid, Gid)>> {
        let id = |id: u64| u32::try_from(id).map_err(std::io::Error::other).on("read the owner of", path);
        Ok(match self.options.owners {
            Owners::Own => None,
            Owners::Root => Some((Uid::ROOT, Gid::ROOT)),
            Owners::Kept => Some((Uid::from_raw(id(entry.ids.0)?), Gid::from_raw(id(entry.ids.1)?))),
        })
    }

    fn mode(&self, entry: &Entry, path: &Path) -> Result<Mode> {
        let mode = entry.header.mode().on("read the mode of", path)? & 0o7777;
        Ok(Mode::from_raw_mode(match self.options.trust {
            // On a directory the bits only say which group new files get.
            Trust::Guest { set_id: false } if entry.header.entry_type() != EntryType::Directory => {
                mode & !SET_ID
            }
            _ => mode,
        }))
    }

    /// The directory of `path`, made if it is not there, and the name in it.
    fn parent(&mut self, path: &Path) -> Result<(OwnedFd, OsString)> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let directory = parent_of(path);
        if let Some((last, fd)) = self.parent.take()
            && last == directory
        {
            return Ok((fd, name));
        }
        if directory.as_os_str().is_empty() {
            return Ok((self.target.directory.try_clone().on("open the directory of", path)?, name));
        }
        let fd = match self.open_directory(&directory, OFlags::PATH) {
            Err(Errno::NOENT) => {
                self.make_directory(&directory)?;
                let mode = Mode::from_raw_mode(0o755);
                let made =
                    self.open_directory(&directory, OFlags::RDONLY).on("open the directory", &directory)?;
                rustix::fs::fchmod(&made, mode).on("set the mode of", &directory)?;
                Ok(made)
            }
            opened => opened,
        };
        Ok((fd.on("open the directory", &directory)?, name))
    }

    fn open_directory(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.options.trust {
            Trust::Owner => rustix::fs::openat(&self.target.directory, path, flags, Mode::empty()),
            Trust::Guest { .. } => rustix::fs::openat2(
                &self.target.directory,
                path,
                flags,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            ),
        }
    }
}

fn parent_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// Removes a file that is in the way.
fn make_room(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(ArchiveError::refused(path, "a file cannot replace a directory")),
        Err(errno) => Err(errno).on("replace", path),
    }
}

fn make_node(parent: &OwnedFd, name: &OsStr, entry: &Entry) -> std::io::Result<()> {
    let kind = match entry.header.entry_type() {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let number = |number: Option<u32>| number.unwrap_or_default();
    let major = number(entry.header.device_major()?);
    let device = rustix::fs::makedev(major, number(entry.header.device_minor()?));
    Ok(rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)?)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
