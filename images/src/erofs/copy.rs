//! A directory of an image, copied to the host: what a new volume begins with.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use super::access::{Access, Node, damaged};

/// Links that are followed on the way to the directory, as Linux does.
const MAX_LINKS: usize = 40;
/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Copies what is in the directory `inside` of the image at `image` to the empty directory `to`, which gets the owner
/// and the mode of the original; false if there is no such directory. Devices and sockets are left out. Owners and
/// attributes that this process may not set are left as they are.
pub fn copy_directory(image: &Path, inside: &str, to: &Path) -> io::Result<bool> {
    let access = Access::open(image)?;
    let Some(top) = find(&access, inside)?.filter(|node| kind(node) == FileType::Directory) else {
        return Ok(false);
    };
    let mut copy = Copy { access, names: BTreeMap::new(), directories: Vec::new() };
    let mut pending = VecDeque::from([(top.clone(), to.to_owned())]);
    copy.directories.push((top, to.to_owned()));
    while let Some((directory, path)) = pending.pop_front() {
        for (name, nid) in copy.access.entries(&directory)? {
            let (node, path) = (copy.access.node(nid)?, path.join(OsStr::from_bytes(&name)));
            copy.make(&node, &path)?;
            if kind(&node) == FileType::Directory {
                copy.directories.push((node.clone(), path.clone()));
                pending.push_back((node, path));
            }
        }
    }
    // What is made in a directory changes its time.
    for (node, path) in copy.directories.iter().rev() {
        finish(&copy.access, node, path)?;
    }
    Ok(true)
}

struct Copy {
    access: Access,
    /// Where an inode with several names is already.
    names: BTreeMap<u64, PathBuf>,
    directories: Vec<(Node, PathBuf)>,
}

impl Copy {
    fn make(&mut self, node: &Node, path: &Path) -> io::Result<()> {
        if kind(node) != FileType::Directory && node.links > 1 {
            if let Some(first) = self.names.get(&node.nid) {
                return std::fs::hard_link(first, path);
            }
            self.names.insert(node.nid, path.to_owned());
        }
        match kind(node) {
            // Nobody else's until it is finished. A damaged image may have a loop, which ends at the longest path.
            FileType::Directory => return DirBuilder::new().mode(0o700).create(path),
            FileType::RegularFile => self.write(node, path)?,
            FileType::Symlink => {
                let target = self.access.content(node)?;
                symlink(OsStr::from_bytes(&target), path)?;
            }
            FileType::Fifo => mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0)?,
            _ => return Ok(()),
        }
        finish(&self.access, node, path)
    }

    fn write(&self, node: &Node, path: &Path) -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(node.size).unwrap_or(CHUNK))];
        let mut offset = 0;
        while offset < node.size {
            let count = self.access.read(node, offset, &mut buffer)?;
            file.write_all(&buffer[..count])?;
            offset += count as u64;
        }
        Ok(())
    }
}

/// Gives what is at `path` the owner, attributes, mode and time of `node`.
fn finish(access: &Access, node: &Node, path: &Path) -> io::Result<()> {
    match lchown(path, Some(node.uid), Some(node.gid)) {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    if kind(node) != FileType::Symlink {
        // After the owner, which takes away the right to run as it.
        std::fs::set_permissions(path, Permissions::from_mode(u32::from(node.mode) & 0o7777))?;
    }
    for (name, value) in access.xattrs(node)? {
        let _ = lsetxattr(path, OsStr::from_bytes(&name), &value, XattrFlags::empty());
    }
    let time = Timespec { tv_sec: node.mtime.0, tv_nsec: node.mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What `path` leads to, links followed as in a container whose root this is; `None` if nothing is there.
fn find(access: &Access, path: &str) -> io::Result<Option<Node>> {
    let parts =
        |path: &[u8]| -> Vec<Vec<u8>> { path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect() };
    let mut above = vec![access.root()?];
    let mut left: VecDeque<Vec<u8>> = parts(path.as_bytes()).into();
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let here = above.last().ok_or_else(|| damaged("no root"))?;
        if part.is_empty() || part == b"." {
            continue;
        }
        if part == b".." {
            above.truncate((above.len() - 1).max(1));
            continue;
        }
        if kind(here) != FileType::Directory {
            return Ok(None);
        }
        let entry = access.entries(here)?.into_iter().find(|(name, _)| *name == part);
        let Some((_, nid)) = entry else { return Ok(None) };
        let node = access.node(nid)?;
        if kind(&node) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            let target = access.content(&node)?;
            if target.starts_with(b"/") {
                above.truncate(1);
            }
            parts(&target).into_iter().rev().for_each(|part| left.push_front(part));
        } else {
            above.push(node);
        }
    }
    Ok(above.pop())
}

fn kind(node: &Node) -> FileType {
    FileType::from_raw_mode(node.mode.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::erofs::Builder;

    fn image(directory: &Path) -> PathBuf {
        let large: Vec<u8> = (0..3 * 4096 + 100).map(|at| at as u8).collect();
        let bytes = Builder::new()
            .directory("srv/data", 0o1750)
            .file("srv/data/small", 0o640, b"small")
            .file("srv/data/large", 0o755, &large)
            .symlink("srv/data/link", "/etc/passwd")
            .directory("srv/data/sub/deep", 0o700)
            .file("srv/data/sub/deep/file", 0o600, b"deep")
            .symlink("var", "srv")
            .symlink("loop", "/loop")
            .file("file", 0o644, b"")
            .build()
            .unwrap();
        let path = directory.join("image");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_directory_comes_with_everything_in_it() {
        let base = tempfile::tempdir().unwrap();
        let image = image(base.path());
        let to = base.path().join("to");
        std::fs::create_dir(&to).unwrap();
        assert!(copy_directory(&image, "/var/../var/./data/", &to).unwrap());
        assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o1750);
        assert_eq!(std::fs::read(to.join("small")).unwrap(), b"small");
        let large = std::fs::read(to.join("large")).unwrap();
        assert!(
            large.len() == 3 * 4096 + 100 && large.iter().enumerate().all(|(at, byte)| at as u8 == *byte)
        );
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        let deep = to.join("sub/deep/file");
        assert_eq!((std::fs::read(&deep).unwrap(), deep.metadata().unwrap().mtime()), (b"deep".to_vec(), 0));
        assert_eq!(to.join("large").metadata().unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_is_no_directory_is_not_copied() {
        let base = tempfile::tempdir().unwrap();
        let image = image(base.path());
        for path in ["/missing", "/file", "/file/x", "/loop"] {
            assert!(!copy_directory(&image, path, base.path()).unwrap(), "{path}");
        }
        assert!(copy_directory(&base.path().join("none"), "/", base.path()).is_err());
    }

    #[test]
    fn a_damaged_image_is_an_error_and_no_more() {
        let base = tempfile::tempdir().unwrap();
        let whole = std::fs::read(image(base.path())).unwrap();
        let damaged = base.path().join("damaged");
        for round in 0..600usize {
            let mut bytes = whole.clone();
            let at = if round % 2 == 0 { 1024 + round / 2 % 64 } else { whole.len() - 1 - round * 13 % 4096 };
            bytes[at] ^= 1 << (round % 8);
            std::fs::write(&damaged, &bytes).unwrap();
            let to = tempfile::tempdir().unwrap();
            let _ = copy_directory(&damaged, "/srv/data", to.path());
        }
        std::fs::write(&damaged, &whole[..2000]).unwrap();
        assert!(copy_directory(&damaged, "/srv", base.path()).is_err());
    }
}
