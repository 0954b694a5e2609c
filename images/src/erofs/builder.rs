//! A small image made from a list of paths, in memory: the agent's disk, test disks.

use super::data::DataWriter;
use super::image::{ImageOptions, write_image};
use super::tree::{Content, FileData, InodeId, Metadata, Tree};
use super::{Error, INLINE_LIMIT};

/// Collects entries, then makes the image. Everything is owned by root and dated 1970, so the same entries give the
/// same bytes.
#[derive(Debug, Default)]
pub struct Builder<'a> {
    entries: Vec<Entry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    path: &'a str,
    mode: u16,
    kind: Kind<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    Directory,
    File(&'a [u8]),
    Symlink(&'a str),
}

impl<'a> Builder<'a> {
    /// An image of one empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory at `path` (such as `dev/pts`); missing directories above it get mode 0755.
    #[must_use]
    pub fn directory(self, path: &'a str, mode: u16) -> Self {
        self.entry(path, mode, Kind::Directory)
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &'a str, mode: u16, bytes: &'a [u8]) -> Self {
        self.entry(path, mode, Kind::File(bytes))
    }

    /// Adds a symbolic link to `target`.
    #[must_use]
    pub fn symlink(self, path: &'a str, target: &'a str) -> Self {
        self.entry(path, 0o777, Kind::Symlink(target))
    }

    /// The image's bytes, a whole number of blocks.
    pub fn build(self) -> Result<Vec<u8>, Error> {
        let mut image = Vec::new();
        let mut data = DataWriter::new(&mut image);
        let mut tree = Tree::new();
        for entry in &self.entries {
            add(&mut tree, &mut data, entry)?;
        }
        write_image(&mut tree, data, ImageOptions::default())?;
        Ok(image)
    }

    fn entry(mut self, path: &'a str, mode: u16, kind: Kind<'a>) -> Self {
        self.entries.push(Entry { path, mode: mode & 0o7777, kind });
        self
    }
}

fn add(tree: &mut Tree, data: &mut DataWriter<'_, Vec<u8>>, entry: &Entry<'_>) -> Result<(), Error> {
    let refuse = |reason| Error::Path { path: entry.path.to_owned(), reason };
    let path = entry.path.trim_matches('/');
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut parent = Tree::ROOT;
    for component in parents.split('/').filter(|component| !component.is_empty()) {
        parent = subdirectory(tree, parent, component).map_err(refuse)?;
    }
    check_name(name).map_err(refuse)?;
    let metadata = Metadata::root_owned(entry.mode);
    if let (Kind::Directory, Some(existing)) = (&entry.kind, tree.lookup(parent, name.as_bytes())) {
        if tree.inode(existing.inode).directory().is_none() {
            return Err(refuse("something else is there already"));
        }
        tree.inode_mut(existing.inode).metadata = metadata;
        return Ok(());
    }
    if tree.lookup(parent, name.as_bytes()).is_some() {
        return Err(refuse("it is there already"));
    }
    let content = match entry.kind {
        Kind::Directory => {
            tree.make_directory(parent, name.as_bytes(), metadata, 0);
            return Ok(());
        }
        Kind::Symlink(target) => Content::Symlink(target.as_bytes().into()),
        Kind::File(bytes) if bytes.len() <= INLINE_LIMIT => Content::File(FileData::Inline(bytes.into())),
        Kind::File(bytes) => {
            let extent = data.reserve(bytes.len() as u64)?;
            data.write(extent, 0, bytes)?;
            Content::File(FileData::Blocks(extent))
        }
    };
    tree.insert(parent, name.as_bytes(), metadata, Vec::new(), content, 0);
    Ok(())
}

fn subdirectory(tree: &mut Tree, parent: InodeId, name: &str) -> Result<InodeId, &'static str> {
    check_name(name)?;
    match tree.lookup(parent, name.as_bytes()) {
        Some(entry) if tree.inode(entry.inode).directory().is_some() => Ok(entry.inode),
        Some(_) => Err("a part of it is not a directory"),
        None => Ok(tree.make_directory(parent, name.as_bytes(), Metadata::root_owned(0o755), 0)),
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" | "." | ".." => Err("a part of it is empty, `.` or `..`"),
        _ if name.len() > 255 => Err("a part of it is longer than 255 bytes"),
        _ if name.contains('\0') => Err("it contains a NUL byte"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_entries_give_the_same_image() {
        let build = || {
            Builder::new()
                .file("init", 0o755, &[1; 10_000])
                .directory("dev/pts", 0o700)
                .symlink("sbin/init", "/init")
                .build()
        };
        let image = build().expect("valid paths");
        assert_eq!(image, build().expect("valid paths"));
        assert_eq!(image.len() % 4096, 0);
    }

    #[test]
    fn paths_that_cannot_be_placed_are_refused() {
        for path in ["", "/", "a/../b", "a/./b", "init/x", "init"] {
            let result = Builder::new().file("init", 0o755, b"x").file(path, 0o644, b"").build();
            assert!(matches!(result, Err(Error::Path { .. })), "{path:?}");
        }
    }
}
