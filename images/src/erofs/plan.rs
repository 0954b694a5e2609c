//! Decides where every inode goes before any is written: addresses are needed by directories that come earlier.

use std::collections::BTreeMap;

use super::directory::{data_size, names};
use super::layout::{DataLayout, InodePlacement, NO_BLOCK, SLOT_SIZE, fits_compact, inode_size};
use super::tree::{Content, FileData, Inode, InodeId, Timestamp, Tree};
use super::xattr::SharedXattrs;
use super::{BLOCK_SIZE, Error, INLINE_LIMIT};

/// The first slot used. Address 0 would give the root inode number 0, which programs take for "no entry".
const FIRST_SLOT: u64 = 2;

/// One inode's place.
pub(super) struct Planned {
    pub(super) id: InodeId,
    /// Bytes from the start of the metadata area.
    pub(super) offset: u64,
    pub(super) placement: InodePlacement,
    /// Whole blocks of its data that are still to be written behind the metadata area.
    pub(super) own_blocks: u64,
}

impl Planned {
    /// Bytes of the data's last, partial block that sit behind the inode.
    pub(super) fn tail_size(&self) -> u64 {
        if self.placement.layout == DataLayout::Inline { self.placement.size % BLOCK_SIZE } else { 0 }
    }
}

/// The whole metadata area's plan.
pub(super) struct Plan {
    /// In ascending order of `offset`.
    pub(super) inodes: Vec<Planned>,
    /// An inode's address by its index in the tree; 0 for removed ones.
    pub(super) nids: Vec<u64>,
    /// Bytes of the area, a multiple of the block size.
    pub(super) size: u64,
    /// Whole blocks that follow it.
    pub(super) own_blocks: u64,
    /// The time most inodes have, so that these can be compact.
    pub(super) build_time: Timestamp,
}

impl Plan {
    /// Plans the image of `tree` with its metadata area at block `meta_block`.
    pub(super) fn new(tree: &Tree, shared: &SharedXattrs<'_>, meta_block: u64) -> Result<Self, Error> {
        let order = inode_order(tree);
        let build_time = most_common_time(tree, &order);
        let mut plan = Self {
            inodes: Vec::with_capacity(order.len()),
            nids: vec![0; tree.capacity()],
            size: FIRST_SLOT * SLOT_SIZE,
            own_blocks: 0,
            build_time,
        };
        for id in order {
            plan.place(tree, shared, id)?;
        }
        plan.size = plan.size.next_multiple_of(BLOCK_SIZE);
        let mut block = meta_block + plan.size / BLOCK_SIZE;
        for planned in plan.inodes.iter_mut().filter(|planned| planned.own_blocks > 0) {
            planned.placement.block = u32::try_from(block).map_err(|_| Error::TooLarge)?;
            block += planned.own_blocks;
        }
        Ok(plan)
    }

    fn place(&mut self, tree: &Tree, shared: &SharedXattrs<'_>, id: InodeId) -> Result<(), Error> {
        let inode = tree.inode(id);
        let (size, stored) = data_of(id, inode);
        let compact = fits_compact(inode, size, self.build_time);
        let xattr_size = shared.body_size(&inode.xattrs)?;
        let head = inode_size(compact) + xattr_size as u64;
        let tail = size % BLOCK_SIZE;
        let inline = stored && tail > 0 && tail <= INLINE_LIMIT as u64 && head + tail <= BLOCK_SIZE;
        let (layout, own_blocks) = match (stored, inline) {
            (false, _) => (DataLayout::Plain, 0),
            (true, true) => (DataLayout::Inline, size / BLOCK_SIZE),
            (true, false) => (DataLayout::Plain, size.div_ceil(BLOCK_SIZE)),
        };
        // What is read together stays in one block; only very large attributes may cross.
        let together = match inline {
            true => head + tail,
            false if head <= BLOCK_SIZE => head,
            false => inode_size(compact),
        };
        if self.size % BLOCK_SIZE + together > BLOCK_SIZE {
            self.size = self.size.next_multiple_of(BLOCK_SIZE);
        }
        let block = match &inode.content {
            Content::File(FileData::Blocks(extent)) if extent.size > 0 => extent.first_block,
            _ => NO_BLOCK,
        };
        let number = u32::try_from(self.inodes.len() + 1).map_err(|_| Error::TooLarge)?;
        let placement = InodePlacement { compact, layout, xattr_size, size, block, number };
        self.nids[id.index()] = self.size / SLOT_SIZE;
        self.inodes.push(Planned { id, offset: self.size, placement, own_blocks });
        self.own_blocks += own_blocks;
        let end = self.size + head + if inline { tail } else { 0 };
        self.size = end.next_multiple_of(SLOT_SIZE);
        Ok(())
    }
}

/// The size of an inode's data, and whether the data has yet to be written.
fn data_of(id: InodeId, inode: &Inode) -> (u64, bool) {
    match &inode.content {
        Content::Directory(directory) => (data_size(&names(directory, id)), true),
        Content::File(FileData::Inline(bytes)) => (bytes.len() as u64, true),
        Content::File(FileData::Blocks(extent)) => (extent.size, false),
        Content::Symlink(target) => (target.len() as u64, true),
        _ => (0, false),
    }
}

/// Every live inode once: first what path lookups touch (directories breadth first, each followed by its symbolic
/// links and special files), then regular files, those of one directory together.
fn inode_order(tree: &Tree) -> Vec<InodeId> {
    let mut seen = vec![false; tree.capacity()];
    let mut directories = vec![Tree::ROOT];
    let mut order = Vec::with_capacity(tree.live_inodes());
    let mut next = 0;
    while let Some(&id) = directories.get(next) {
        next += 1;
        order.push(id);
        for entry in tree.directory(id).entries.values() {
            match tree.inode(entry.inode).content {
                Content::Directory(_) => directories.push(entry.inode),
                Content::File(_) => {}
                _ => push_once(entry.inode, &mut seen, &mut order),
            }
        }
    }
    for id in directories {
        for entry in tree.directory(id).entries.values() {
            if let Content::File(_) = tree.inode(entry.inode).content {
                push_once(entry.inode, &mut seen, &mut order);
            }
        }
    }
    order
}

fn push_once(id: InodeId, seen: &mut [bool], order: &mut Vec<InodeId>) {
    if !std::mem::replace(&mut seen[id.index()], true) {
        order.push(id);
    }
}

/// The mtime that most inodes have; of equally common ones the earliest.
fn most_common_time(tree: &Tree, order: &[InodeId]) -> Timestamp {
    let mut counts: BTreeMap<Timestamp, u32> = BTreeMap::new();
    for id in order {
        *counts.entry(tree.inode(*id).metadata.mtime).or_default() += 1;
    }
    let best = counts.into_iter().min_by_key(|(time, count)| (std::cmp::Reverse(*count), *time));
    best.map(|(time, _)| time).unwrap_or_default()
}
