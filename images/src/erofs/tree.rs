//! The directory tree of an image while it is being made: an arena of inodes, without file contents.
//!
//! It is what unpacking layers changes and what [`write_image`](super::write_image) reads. Directories have one
//! name; anything else may have several (hard links) and is dropped with its last one. All walks are iterative, so a
//! deep tree cannot exhaust the stack.

use std::collections::BTreeMap;

use super::xattr::Xattr;

/// Index of an inode in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds past `seconds`, below 10^9.
    pub nanos: u32,
}

/// Owner, permissions and time of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky (`0o7777`); the type comes from [`Content`].
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
}

impl Metadata {
    /// Root's, from 1970: what a directory that no archive describes gets.
    pub fn root_owned(mode: u16) -> Self {
        Self { mode, ..Self::default() }
    }
}

/// Number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number, 12 bits used by Linux.
    pub major: u32,
    /// Minor number, 20 bits used by Linux.
    pub minor: u32,
}

/// Blocks of file data in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub first_block: u32,
    /// Bytes used; the last block is padded with zeros.
    pub size: u64,
}

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileData {
    /// Here, at most [`INLINE_LIMIT`](super::INLINE_LIMIT) bytes.
    Inline(Box<[u8]>),
    /// Already streamed to the image.
    Blocks(Extent),
}

impl FileData {
    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blocks(extent) => extent.size,
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent {
    /// What it names.
    pub inode: InodeId,
    /// The layer that put it here; for a directory see [`Directory::layer`].
    pub layer: u32,
}

/// A directory's names and place.
#[derive(Debug)]
pub struct Directory {
    /// Names in byte order, without `.` and `..`.
    pub entries: BTreeMap<Box<[u8]>, Dirent>,
    /// The directory above; the root is its own parent.
    pub parent: InodeId,
    /// Steps below the root.
    pub depth: u32,
    /// The last layer that named this directory or something below it.
    pub layer: u32,
    /// The last layer that removed what lower layers left in here.
    pub cleaned_by: Option<u32>,
}

/// What an inode is.
#[derive(Debug)]
pub enum Content {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(FileData),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// One inode.
#[derive(Debug)]
pub struct Inode {
    /// Owner, permissions, time.
    pub metadata: Metadata,
    /// Extended attributes, sorted, each name once.
    pub xattrs: Vec<Xattr>,
    /// Names (for a directory: 2 and one for each directory in it); 0 once removed.
    pub links: u32,
    /// Type and type-specific part.
    pub content: Content,
}

impl Inode {
    /// The directory in here, if it is one.
    pub fn directory(&self) -> Option<&Directory> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

/// The tree; the root directory is always there.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
    live: usize,
    released: Vec<Extent>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root directory's inode.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree of one empty root directory, owned by root with mode 0755.
    pub fn new() -> Self {
        let root = Inode {
            metadata: Metadata::root_owned(0o755),
            xattrs: Vec::new(),
            links: 2,
            content: Content::Directory(Directory {
                entries: BTreeMap::new(),
                parent: Self::ROOT,
                depth: 0,
                layer: 0,
                cleaned_by: None,
            }),
        };
        Self { inodes: vec![root], live: 1, released: Vec::new() }
    }

    /// Inodes that still have a name.
    pub fn live_inodes(&self) -> usize {
        self.live
    }

    /// Every inode that still has a name.
    pub(super) fn live(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.iter().filter(|inode| inode.links > 0)
    }

    /// One past the largest index ever given out.
    pub(super) fn capacity(&self) -> usize {
        self.inodes.len()
    }

    /// The inode `id` of this tree.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// The inode `id`, to change its metadata or attributes.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// The directory `id`.
    ///
    /// # Panics
    /// If `id` is not a directory: a bug of the caller, who got it from a lookup.
    pub fn directory(&self, id: InodeId) -> &Directory {
        self.inode(id).directory().expect("invariant: the inode is a directory")
    }

    /// As [`Tree::directory`], to change it.
    pub fn directory_mut(&mut self, id: InodeId) -> &mut Directory {
        match &mut self.inode_mut(id).content {
            Content::Directory(directory) => directory,
            _ => unreachable!("invariant: the inode is a directory"),
        }
    }

    /// What `name` in `directory` is.
    pub fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<Dirent> {
        self.directory(directory).entries.get(name).copied()
    }

    /// Makes a directory called `name`, which must be free, on behalf of `layer`.
    pub fn make_directory(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: Metadata,
        layer: u32,
    ) -> InodeId {
        let depth = self.directory(parent).depth + 1;
        let directory = Directory { entries: BTreeMap::new(), parent, depth, layer, cleaned_by: None };
        let inode = Inode { metadata, xattrs: Vec::new(), links: 2, content: Content::Directory(directory) };
        let id = self.add(inode);
        self.enter(parent, name, id, layer);
        self.inode_mut(parent).links += 1;
        id
    }

    /// Adds anything but a directory as `name`, which must be free, on behalf of `layer`.
    pub fn insert(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: Metadata,
        xattrs: Vec<Xattr>,
        content: Content,
        layer: u32,
    ) -> InodeId {
        let id = self.add(Inode { metadata, xattrs, links: 1, content });
        self.enter(parent, name, id, layer);
        id
    }

    /// Gives `target`, which is no directory, the further name `name`, which must be free.
    pub fn link(&mut self, parent: InodeId, name: &[u8], target: InodeId, layer: u32) {
        self.inode_mut(target).links += 1;
        self.enter(parent, name, target, layer);
    }

    /// Removes `name` and, if it is a directory, everything below it. Nothing happens if it is not there.
    pub fn remove(&mut self, parent: InodeId, name: &[u8]) {
        let Some(dirent) = self.directory_mut(parent).entries.remove(name) else { return };
        if self.inode(dirent.inode).directory().is_some() {
            self.inode_mut(parent).links -= 1;
        }
        let mut pending = vec![dirent.inode];
        while let Some(id) = pending.pop() {
            self.drop_name(id, &mut pending);
        }
    }

    /// The blocks of files removed since the last call; nothing refers to them any more.
    pub fn take_released(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.released)
    }

    fn add(&mut self, inode: Inode) -> InodeId {
        let id = InodeId(u32::try_from(self.inodes.len()).expect("invariant: unpacking limits the entries"));
        self.inodes.push(inode);
        self.live += 1;
        id
    }

    fn enter(&mut self, parent: InodeId, name: &[u8], inode: InodeId, layer: u32) {
        let previous = self.directory_mut(parent).entries.insert(name.into(), Dirent { inode, layer });
        debug_assert!(previous.is_none(), "the name must be free");
    }

    fn drop_name(&mut self, id: InodeId, pending: &mut Vec<InodeId>) {
        let inode = &mut self.inodes[id.index()];
        if !matches!(inode.content, Content::Directory(_)) && inode.links > 1 {
            inode.links -= 1;
            return;
        }
        inode.links = 0;
        inode.xattrs = Vec::new();
        self.live -= 1;
        match std::mem::replace(&mut inode.content, Content::Fifo) {
            Content::Directory(directory) => {
                pending.extend(directory.entries.values().map(|entry| entry.inode))
            }
            Content::File(FileData::Blocks(extent)) => self.released.push(extent),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> Content {
        Content::File(FileData::Blocks(Extent { first_block: 7, size }))
    }

    #[test]
    fn removing_a_directory_drops_all_below_but_not_a_file_linked_from_elsewhere() {
        let mut tree = Tree::new();
        let a = tree.make_directory(Tree::ROOT, b"a", Metadata::default(), 0);
        let b = tree.make_directory(a, b"b", Metadata::default(), 0);
        let kept = tree.insert(b, b"kept", Metadata::default(), Vec::new(), file(1), 0);
        tree.insert(b, b"gone", Metadata::default(), Vec::new(), file(2), 0);
        tree.link(Tree::ROOT, b"kept too", kept, 0);
        assert_eq!(tree.inode(Tree::ROOT).links, 3);
        tree.remove(Tree::ROOT, b"a");
        assert_eq!(tree.live_inodes(), 2);
        assert_eq!(tree.inode(kept).links, 1);
        assert_eq!(tree.inode(Tree::ROOT).links, 2);
        assert_eq!(tree.take_released(), [Extent { first_block: 7, size: 2 }]);
    }

    #[test]
    fn a_deep_tree_is_removed_without_recursion() {
        let mut tree = Tree::new();
        let mut parent = Tree::ROOT;
        for _ in 0..50_000 {
            parent = tree.make_directory(parent, b"d", Metadata::default(), 0);
        }
        tree.remove(Tree::ROOT, b"d");
        assert_eq!(tree.live_inodes(), 1);
    }
}
