//! A root filesystem from a directory of this host (`dir:PATH`): owners, modes, times, attributes, hard links, holes
//! and special files as they are.
//!
//! Symbolic links are never followed and other file systems mounted below are not entered: a mount point appears as
//! an empty directory. What this user may not read is left out and reported.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::RootfsError;
use crate::erofs::{
    Content, DataWriter, Device, FileData, INLINE_LIMIT, ImageOptions, InodeId, Metadata, Timestamp, Tree,
    Xattr, write_image,
};
use crate::progress::{Event, Progress};
use crate::unpack::allowed_xattr;

/// Bytes read at a time.
const BUFFER_SIZE: usize = 1 << 20;

/// Writes the file system of the directory `source` to the empty `file`, which errors call `path`.
pub(super) fn build(
    file: &mut File,
    path: &Path,
    source: &Path,
    progress: &dyn Progress,
) -> Result<(), RootfsError> {
    let failed = |error: Errno| RootfsError::file("open the directory", source, error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, source, flags, Mode::empty()).map_err(failed)?;
    let own = rustix::fs::fstat(&*file).map_err(failed)?;
    let write_error = |error| RootfsError::Write { path: path.to_owned(), source: error };
    let mut walk = Walk {
        source,
        root,
        own: (own.st_dev, own.st_ino),
        tree: Tree::new(),
        data: DataWriter::new(file),
        links: HashMap::new(),
        buffer: vec![0; BUFFER_SIZE],
        position: 0,
        image: path,
        progress,
    };
    walk.run()?;
    let Walk { mut tree, data, .. } = walk;
    let size = write_image(&mut tree, data, ImageOptions::default()).map_err(write_error)?;
    progress.event(Event::RootfsDone { size });
    Ok(())
}

struct Walk<'a> {
    source: &'a Path,
    root: OwnedFd,
    /// The image being written, which may lie in the directory itself.
    own: (u64, u64),
    tree: Tree,
    data: DataWriter<'a, File>,
    /// Files with several names, by device and inode number.
    links: HashMap<(u64, u64), InodeId>,
    buffer: Vec<u8>,
    position: u64,
    image: &'a Path,
    progress: &'a dyn Progress,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), RootfsError> {
        let stat =
            rustix::fs::fstat(&self.root).map_err(|error| self.failed("look at", Path::new(""), error))?;
        let xattrs = xattrs(&proc_path(&self.root, b"."));
        let root = self.tree.inode_mut(Tree::ROOT);
        root.metadata = metadata(&stat);
        root.xattrs = xattrs;
        let mut pending = vec![(PathBuf::new(), Tree::ROOT)];
        while let Some((relative, inode)) = pending.pop() {
            match self.open_directory(&relative) {
                Ok(directory) => self.list(&directory, &relative, inode, &mut pending)?,
                Err(Errno::XDEV) => {}
                Err(error) => self.skip_or_fail("open the directory", &relative, error)?,
            }
        }
        Ok(())
    }

    fn open_directory(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    fn list(
        &mut self,
        directory: &OwnedFd,
        relative: &Path,
        parent: InodeId,
        pending: &mut Vec<(PathBuf, InodeId)>,
    ) -> Result<(), RootfsError> {
        let failed = |error| RootfsError::file("list", &self.source.join(relative), error);
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        // The order in which file data is stored; the host's own order is not reproducible.
        names.sort();
        for name in names {
            let relative = relative.join(OsStr::from_bytes(name.to_bytes()));
            if let Some(inode) = self.add(directory, &name, &relative, parent)? {
                pending.push((relative, inode));
            }
        }
        Ok(())
    }

    /// Adds one entry; returns the inode if it is a directory to go on with.
    fn add(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        relative: &Path,
        parent: InodeId,
    ) -> Result<Option<InodeId>, RootfsError> {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since it was listed.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return self.skip_or_fail("look at", relative, error).map(|()| None),
        };
        let id = (stat.st_dev, stat.st_ino);
        if id == self.own {
            return Ok(None);
        }
        let xattrs = xattrs(&proc_path(directory, name.to_bytes()));
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Directory {
            let inode = self.tree.make_directory(parent, name.to_bytes(), metadata(&stat), 0);
            self.tree.inode_mut(inode).xattrs = xattrs;
            return Ok(Some(inode));
        }
        if let Some(&known) = self.links.get(&id) {
            self.tree.link(parent, name.to_bytes(), known, 0);
            return Ok(None);
        }
        let Some(content) = self.content(directory, name, relative, &stat)? else { return Ok(None) };
        let inode = self.tree.insert(parent, name.to_bytes(), metadata(&stat), xattrs, content, 0);
        if stat.st_nlink > 1 {
            self.links.insert(id, inode);
        }
        Ok(None)
    }

    fn content(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        relative: &Path,
        stat: &Stat,
    ) -> Result<Option<Content>, RootfsError> {
        let device =
            Device { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) };
        Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => match rustix::fs::readlinkat(directory, name, Vec::new()) {
                Ok(target) => Content::Symlink(target.to_bytes().into()),
                Err(error) => return self.skip_or_fail("read the link", relative, error).map(|()| None),
            },
            FileType::CharacterDevice => Content::CharDevice(device),
            FileType::BlockDevice => Content::BlockDevice(device),
            FileType::Fifo => Content::Fifo,
            FileType::Socket => Content::Socket,
            _ => {
                // Non-blocking, in case the file has become a pipe since.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Ok(file) => Content::File(self.copy(&File::from(file), relative)?),
                    Err(error) => return self.skip_or_fail("open", relative, error).map(|()| None),
                }
            }
        }))
    }

    /// Copies the data of `file` as far as it went when opened; if it shrinks meanwhile the rest is zeros.
    fn copy(&mut self, file: &File, relative: &Path) -> Result<FileData, RootfsError> {
        let failed = |error: io::Error| RootfsError::file("read", &self.source.join(relative), error);
        let write_error = |source| RootfsError::Write { path: self.image.to_owned(), source };
        let size = file.metadata().map_err(failed)?.len();
        if size <= INLINE_LIMIT as u64 {
            let mut bytes = vec![0; size as usize];
            read_up_to(file, &mut bytes, 0).map_err(failed)?;
            return Ok(FileData::Inline(bytes.into()));
        }
        let extent = self.data.reserve(size).map_err(write_error)?;
        let mut at = 0;
        while at < size {
            let (start, end) = next_data(file, at, size).map_err(failed)?;
            at = start;
            while at < end {
                let want = usize::try_from(end - at).map_or(BUFFER_SIZE, |want| want.min(BUFFER_SIZE));
                let count = read_up_to(file, &mut self.buffer[..want], at).map_err(failed)?;
                if count == 0 {
                    return Ok(FileData::Blocks(extent));
                }
                self.data.write(extent, at, &self.buffer[..count]).map_err(write_error)?;
                at += count as u64;
                self.position += count as u64;
            }
            self.progress.event(Event::RootfsBytes { position: self.position });
        }
        Ok(FileData::Blocks(extent))
    }

    /// What a user may not read is left out; anything else is an error.
    fn skip_or_fail(&self, action: &'static str, relative: &Path, error: Errno) -> Result<(), RootfsError> {
        if matches!(error, Errno::ACCESS | Errno::PERM) {
            self.progress.event(Event::RootfsUnreadable { path: &self.source.join(relative) });
            return Ok(());
        }
        Err(self.failed(action, relative, error))
    }

    fn failed(&self, action: &'static str, relative: &Path, error: Errno) -> RootfsError {
        RootfsError::file(action, &self.source.join(relative), error)
    }
}

fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
    }
}

/// A path to `name` that does not depend on what `directory` is called.
fn proc_path(directory: impl AsFd, name: &[u8]) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    PathBuf::from(OsStr::from_bytes(&path))
}

/// The attributes of `path` that an image may have. One that cannot be read counts as absent.
fn xattrs(path: &Path) -> Vec<Xattr> {
    // Most files have none: then nothing is allocated.
    let len = rustix::fs::llistxattr_query(path).unwrap_or(0);
    let mut names = vec![0; len];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut xattrs: Vec<Xattr> = names.filter_map(|name| xattr(path, name)).collect();
    xattrs.sort_by(Xattr::cmp_name);
    xattrs
}

fn xattr(path: &Path, name: &[u8]) -> Option<Xattr> {
    let mut value = vec![0; rustix::fs::lgetxattr_query(path, name).ok()?];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    allowed_xattr(name, &value[..len])
}

/// The next run of data at or after `at`; an empty run at `size` if there is none.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<(u64, u64)> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        // Not every file system tells; then all of it is data.
        Err(Errno::INVAL) => return Ok((at, size)),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok((start, end.max(start)))
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
