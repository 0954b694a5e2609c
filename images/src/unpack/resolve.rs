//! Finds the directory that an entry goes into, following symbolic links inside the root as `chroot` would.

use super::limits::{MAX_DEPTH, MAX_PATH_STEPS, MAX_SYMLINKS};
use super::merge::{EntryError, Merge};
use crate::erofs::{Content, InodeId, Metadata, Tree};

/// Whether a directory that is missing is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// With mode 0755, owned by root; a non-directory in its place is replaced.
    Make,
    /// The answer is then `None`.
    Give,
}

impl Merge<'_> {
    /// The directory at `components` below the root.
    ///
    /// A symbolic link on the way is followed, its absolute target counting from the root. One that would climb over
    /// the root is an attack and an error, although a `chroot` would just stay at the root.
    pub(super) fn resolve(
        &mut self,
        components: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<InodeId>, EntryError> {
        let mut pending: Vec<Box<[u8]>> =
            components.iter().rev().map(|component| (*component).into()).collect();
        let mut directory = Tree::ROOT;
        let (mut steps, mut links) = (0, 0);
        while let Some(component) = pending.pop() {
            steps += 1;
            if steps > MAX_PATH_STEPS {
                return Err(EntryError::Symlinks);
            }
            match &*component {
                b"" | b"." => continue,
                b".." if directory == Tree::ROOT => return Err(EntryError::Escapes),
                b".." => {
                    directory = self.tree.directory(directory).parent;
                    continue;
                }
                _ => {}
            }
            let found = self.tree.lookup(directory, &component);
            match found.map(|entry| (entry.inode, &self.tree.inode(entry.inode).content)) {
                Some((inode, Content::Directory(_))) => directory = inode,
                Some((_, Content::Symlink(target))) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(EntryError::Symlinks);
                    }
                    if target.starts_with(b"/") {
                        directory = Tree::ROOT;
                    }
                    pending.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
                _ if missing == Missing::Give => return Ok(None),
                _ => {
                    self.remove(directory, &component);
                    directory = self.make_parent(directory, &component)?;
                }
            }
        }
        Ok(Some(directory))
    }

    fn make_parent(&mut self, directory: InodeId, name: &[u8]) -> Result<InodeId, EntryError> {
        self.count_entry()?;
        self.make_directory(directory, name, Metadata::root_owned(0o755))
    }

    /// Makes a directory, unless it would be too deep.
    pub(super) fn make_directory(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: Metadata,
    ) -> Result<InodeId, EntryError> {
        if self.tree.directory(parent).depth >= MAX_DEPTH {
            return Err(EntryError::Depth);
        }
        Ok(self.tree.make_directory(parent, name, metadata, self.layer))
    }
}
