//! Applies one layer's entries to the tree of the layers below it.
//!
//! What an entry does follows umoci: a directory on a directory changes its metadata, anything else replaces what was
//! there; a whiteout removes only what lower layers left, so its place in the archive does not matter; adding a name
//! does not touch its directory's time; a hard link brings no metadata.

use super::limits::{
    Limits, MAX_APPARENT_BYTES, MAX_DEPTH, MAX_DEVICES, MAX_INLINE_BYTES, MAX_PATH_STEPS, MAX_SYMLINKS,
    MAX_TOTAL_XATTR_BYTES,
};
use super::path::{PathError, Role, components, role};
use super::resolve::Missing;
use super::tar::{Entry, Kind, TarError, TarReader};
use crate::erofs::{self, Content, DataWriter, FileData, INLINE_LIMIT, InodeId, Output, Tree, Xattr};

/// Why an entry was refused.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The archive is malformed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The name is.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The image could not be written.
    #[error(transparent)]
    Image(#[from] erofs::Error),
    /// Its way leads over a link that climbs over the root.
    #[error("its path runs through a symbolic link that leaves the root file system")]
    Escapes,
    /// Its way is too long.
    #[error("its path runs through more than {MAX_SYMLINKS} symbolic links or {MAX_PATH_STEPS} components")]
    Symlinks,
    /// Too deep.
    #[error("it lies more than {MAX_DEPTH} directories deep")]
    Depth,
    /// The root can only be a directory.
    #[error("it would replace the root directory by something else")]
    Root,
    /// A hard link to nothing.
    #[error("it is a hard link to {0:?}, which is not there")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("it is a hard link to {0:?}, which is a directory")]
    LinkDirectory(String),
    /// A symbolic link to nothing.
    #[error("it is a symbolic link without a target")]
    EmptyLink,
    /// Above the limit.
    #[error("the image has more than the limit of {0} entries")]
    Entries(u64),
    /// Above the limit.
    #[error("the image has more than {MAX_DEVICES} device nodes")]
    Devices,
    /// Above the limit.
    #[error("the image's files, with their holes, are larger than {MAX_APPARENT_BYTES} bytes")]
    Apparent,
    /// Above the limit.
    #[error("the image's extended attributes are larger than {MAX_TOTAL_XATTR_BYTES} bytes")]
    Xattrs,
}

/// The tree so far, and what was used up of the limits.
pub(super) struct Merge<'a> {
    pub(super) tree: Tree,
    /// The layer being applied; 0 is what was there before the first.
    pub(super) layer: u32,
    limits: &'a Limits,
    entries: u64,
    devices: u32,
    apparent: u64,
    xattr_bytes: u64,
    inline_bytes: u64,
    /// The last entry's directory as written, with what it resolved to.
    parent: Option<(Vec<Box<[u8]>>, InodeId)>,
}

impl<'a> Merge<'a> {
    /// An empty root.
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self {
            tree: Tree::new(),
            layer: 0,
            limits,
            entries: 0,
            devices: 0,
            apparent: 0,
            xattr_bytes: 0,
            inline_bytes: 0,
            parent: None,
        }
    }

    /// From now on, entries belong to the next layer.
    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
        self.parent = None;
    }

    /// Applies `entry`, whose data comes from `reader` and goes to `data`.
    pub(super) fn apply<O: Output>(
        &mut self,
        mut entry: Entry,
        reader: &mut TarReader,
        data: &mut DataWriter<'_, O>,
    ) -> Result<(), EntryError> {
        self.count_entry()?;
        let path = std::mem::take(&mut entry.path);
        let components = components(&path)?;
        let Some((name, parents)) = components.split_last() else { return self.apply_root(entry) };
        let name = match role(name)? {
            Role::Entry(name) => name,
            Role::Whiteout(name) => return self.whiteout(parents, name),
            Role::Opaque => return self.opaque(parents),
            Role::Ignored => return Ok(()),
        };
        let parent = self.parent_of(parents)?;
        self.count_xattrs(&entry.xattrs)?;
        match entry.kind {
            Kind::Directory => self.apply_directory(parent, name, entry)?,
            Kind::HardLink => self.apply_link(parent, name, &entry.link)?,
            _ => {
                let content = self.content(&mut entry, reader, data)?;
                self.remove(parent, name);
                self.tree.insert(parent, name, entry.metadata, entry.xattrs, content, self.layer);
            }
        }
        self.touch(parent);
        Ok(())
    }

    /// Removes `name` with all below it.
    pub(super) fn remove(&mut self, parent: InodeId, name: &[u8]) {
        if let Some(existing) = self.tree.lookup(parent, name) {
            if !matches!(self.tree.inode(existing.inode).content, Content::File(_)) {
                // A directory or link on the remembered way may be what goes.
                self.parent = None;
            }
            self.tree.remove(parent, name);
        }
    }

    /// Counts an entry or an implied directory against the limit.
    pub(super) fn count_entry(&mut self) -> Result<(), EntryError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(EntryError::Entries(self.limits.entries));
        }
        Ok(())
    }

    /// The directory at `parents`. Archives list a directory's entries in a row, so the last is remembered.
    fn parent_of(&mut self, parents: &[&[u8]]) -> Result<InodeId, EntryError> {
        if let Some((known, inode)) = &self.parent
            && known.iter().map(|component| &**component).eq(parents.iter().copied())
        {
            return Ok(*inode);
        }
        let resolved = self.resolve(parents, Missing::Make)?;
        let inode = resolved.expect("invariant: missing directories are made");
        self.parent = Some((parents.iter().map(|component| (*component).into()).collect(), inode));
        Ok(inode)
    }

    fn apply_root(&mut self, entry: Entry) -> Result<(), EntryError> {
        if entry.kind != Kind::Directory {
            return Err(EntryError::Root);
        }
        self.count_xattrs(&entry.xattrs)?;
        let root = self.tree.inode_mut(Tree::ROOT);
        root.metadata = entry.metadata;
        root.xattrs = entry.xattrs;
        Ok(())
    }

    fn apply_directory(&mut self, parent: InodeId, name: &[u8], entry: Entry) -> Result<(), EntryError> {
        let existing = self.tree.lookup(parent, name).map(|existing| existing.inode);
        let existing = existing.filter(|inode| self.tree.inode(*inode).directory().is_some());
        let inode = match existing {
            Some(inode) => inode,
            None => {
                self.remove(parent, name);
                self.make_directory(parent, name, entry.metadata)?
            }
        };
        let directory = self.tree.inode_mut(inode);
        directory.metadata = entry.metadata;
        directory.xattrs = entry.xattrs;
        self.touch(inode);
        Ok(())
    }

    fn apply_link(&mut self, parent: InodeId, name: &[u8], target: &[u8]) -> Result<(), EntryError> {
        let shown = || target.escape_ascii().to_string();
        let components = components(target)?;
        let (target_name, parents) =
            components.split_last().ok_or_else(|| EntryError::LinkDirectory(shown()))?;
        let find = |merge: &mut Self| -> Result<_, EntryError> {
            let directory = merge.resolve(parents, Missing::Give)?;
            Ok(directory.and_then(|directory| merge.tree.lookup(directory, target_name)))
        };
        let found = find(self)?.ok_or_else(|| EntryError::LinkTarget(shown()))?;
        if self.tree.inode(found.inode).directory().is_some() {
            return Err(EntryError::LinkDirectory(shown()));
        }
        self.remove(parent, name);
        // What was in the way may have been, or have held, the target.
        let found = find(self)?.ok_or_else(|| EntryError::LinkTarget(shown()))?;
        self.tree.link(parent, name, found.inode, self.layer);
        Ok(())
    }

    fn content<O: Output>(
        &mut self,
        entry: &mut Entry,
        reader: &mut TarReader,
        data: &mut DataWriter<'_, O>,
    ) -> Result<Content, EntryError> {
        Ok(match entry.kind {
            Kind::Symlink if entry.link.is_empty() => return Err(EntryError::EmptyLink),
            Kind::Symlink => Content::Symlink(std::mem::take(&mut entry.link).into()),
            Kind::CharDevice(device) => {
                self.count_device()?;
                Content::CharDevice(device)
            }
            Kind::BlockDevice(device) => {
                self.count_device()?;
                Content::BlockDevice(device)
            }
            Kind::Fifo => Content::Fifo,
            Kind::File => Content::File(self.file_data(entry, reader, data)?),
            Kind::Directory | Kind::HardLink => unreachable!("invariant: handled by the caller"),
        })
    }

    fn file_data<O: Output>(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader,
        data: &mut DataWriter<'_, O>,
    ) -> Result<FileData, EntryError> {
        self.apparent = self.apparent.saturating_add(entry.size);
        if self.apparent > MAX_APPARENT_BYTES {
            return Err(EntryError::Apparent);
        }
        if entry.size <= INLINE_LIMIT as u64 && self.inline_bytes + entry.size <= MAX_INLINE_BYTES {
            self.inline_bytes += entry.size;
            let mut bytes = vec![0; entry.size as usize];
            for segment in &entry.segments {
                let mut at = segment.offset as usize;
                reader.read(segment.len, |piece| {
                    bytes[at..at + piece.len()].copy_from_slice(piece);
                    at += piece.len();
                    Ok::<(), EntryError>(())
                })?;
            }
            return Ok(FileData::Inline(bytes.into()));
        }
        let extent = data.reserve(entry.size)?;
        for segment in &entry.segments {
            let mut at = segment.offset;
            reader.read(segment.len, |piece| {
                data.write(extent, at, piece)?;
                at += piece.len() as u64;
                Ok::<(), EntryError>(())
            })?;
        }
        Ok(FileData::Blocks(extent))
    }

    fn count_device(&mut self) -> Result<(), EntryError> {
        self.devices += 1;
        if self.devices > MAX_DEVICES { Err(EntryError::Devices) } else { Ok(()) }
    }

    fn count_xattrs(&mut self, xattrs: &[Xattr]) -> Result<(), EntryError> {
        self.xattr_bytes += xattrs.iter().map(|xattr| (64 + xattr.value().len()) as u64).sum::<u64>();
        if self.xattr_bytes > MAX_TOTAL_XATTR_BYTES { Err(EntryError::Xattrs) } else { Ok(()) }
    }

    /// Marks `directory` and all above it as this layer's, so that whiteouts of this layer leave them.
    fn touch(&mut self, mut directory: InodeId) {
        loop {
            let layer = self.layer;
            let inner = self.tree.directory_mut(directory);
            if inner.layer == layer {
                return;
            }
            inner.layer = layer;
            directory = inner.parent;
        }
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), EntryError> {
        let Some(parent) = self.resolve(parents, Missing::Give)? else { return Ok(()) };
        let Some(entry) = self.tree.lookup(parent, name) else { return Ok(()) };
        match self.tree.inode(entry.inode).directory() {
            Some(directory) if directory.layer == self.layer => self.clean(entry.inode),
            None if entry.layer == self.layer => {}
            _ => self.remove(parent, name),
        }
        Ok(())
    }

    fn opaque(&mut self, parents: &[&[u8]]) -> Result<(), EntryError> {
        if let Some(directory) = self.resolve(parents, Missing::Give)? {
            self.clean(directory);
        }
        Ok(())
    }

    /// Removes everything below `directory` that lower layers left. Done once a layer: what comes later is this
    /// layer's own.
    fn clean(&mut self, directory: InodeId) {
        let mut pending = vec![directory];
        while let Some(id) = pending.pop() {
            if self.tree.directory(id).cleaned_by == Some(self.layer) {
                continue;
            }
            self.tree.directory_mut(id).cleaned_by = Some(self.layer);
            let mut lower = Vec::new();
            for (name, entry) in &self.tree.directory(id).entries {
                match self.tree.inode(entry.inode).directory() {
                    Some(inner) if inner.layer == self.layer => pending.push(entry.inode),
                    None if entry.layer == self.layer => {}
                    _ => lower.push(name.clone()),
                }
            }
            for name in lower {
                self.remove(id, &name);
            }
        }
    }
}
