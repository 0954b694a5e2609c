//! Completes an image: writes inodes, directories, shared attributes and the superblock behind the file data.

use super::data::DataWriter;
use super::directory::{encode, names};
use super::layout::{SLOT_SIZE, Superblock, encode_inode, file_type};
use super::output::Output;
use super::plan::{Plan, Planned};
use super::tree::{Content, FileData, Inode, Tree};
use super::xattr::SharedXattrs;
use super::{BLOCK_SIZE, Error};

/// What an image says about itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageOptions {
    /// The file system's UUID; derive it from the content so that the image stays reproducible.
    pub uuid: [u8; 16],
}

/// Writes the metadata of `tree`, whose file data went through `data`, and ends the image.
/// Returns its length in bytes, a multiple of [`BLOCK_SIZE`].
///
/// The blocks of files that were removed from the tree since are given back to the host.
/// The superblock is written last, so an image that was cut short does not mount.
pub fn write_image<O: Output>(
    tree: &mut Tree,
    mut data: DataWriter<'_, O>,
    options: ImageOptions,
) -> Result<u64, Error> {
    let released = tree.take_released();
    let tree = &*tree;
    let shared = SharedXattrs::collect(tree.live().flat_map(|inode| &inode.xattrs));
    let meta_block = data.next_block();
    let plan = Plan::new(tree, &shared, meta_block)?;
    let own_start = meta_block * BLOCK_SIZE + plan.size;
    let xattr_start = own_start + plan.own_blocks * BLOCK_SIZE;
    let len = (xattr_start + shared.bytes.len() as u64).next_multiple_of(BLOCK_SIZE);

    write_inodes(tree, &plan, &shared, meta_block * BLOCK_SIZE, &mut data)?;
    write_own_blocks(tree, &plan, &mut data)?;
    data.write_image(xattr_start, &shared.bytes)?;
    let superblock = Superblock {
        root_nid: plan.nids[Tree::ROOT.index()] as u16,
        inodes: plan.inodes.len() as u64,
        build_time: plan.build_time,
        blocks: block_number(len)?,
        meta_block: block_number(meta_block * BLOCK_SIZE)?,
        xattr_block: block_number(xattr_start)?,
        uuid: options.uuid,
    };
    data.write_image(0, &superblock.encode())?;
    data.finish(len, &released)?;
    Ok(len)
}

fn block_number(offset: u64) -> Result<u32, Error> {
    u32::try_from(offset / BLOCK_SIZE).map_err(|_| Error::TooLarge)
}

fn write_inodes<O: Output>(
    tree: &Tree,
    plan: &Plan,
    shared: &SharedXattrs<'_>,
    start: u64,
    data: &mut DataWriter<'_, O>,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    for planned in &plan.inodes {
        let inode = tree.inode(planned.id);
        bytes.clear();
        encode_inode(inode, &planned.placement, &mut bytes);
        shared.encode_body(&inode.xattrs, &mut bytes);
        if planned.tail_size() > 0 {
            let content = content_bytes(tree, plan, planned, inode);
            let tail = content.len() - planned.tail_size() as usize;
            bytes.extend_from_slice(&content[tail..]);
        }
        data.write_image(start + planned.offset, &bytes)?;
    }
    Ok(())
}

fn write_own_blocks<O: Output>(tree: &Tree, plan: &Plan, data: &mut DataWriter<'_, O>) -> Result<(), Error> {
    for planned in plan.inodes.iter().filter(|planned| planned.own_blocks > 0) {
        let content = content_bytes(tree, plan, planned, tree.inode(planned.id));
        let whole = content.len() - planned.tail_size() as usize;
        data.write_image(u64::from(planned.placement.block) * BLOCK_SIZE, &content[..whole])?;
    }
    Ok(())
}

/// The data of an inode that is not yet in the image.
fn content_bytes<'a>(
    tree: &Tree,
    plan: &Plan,
    planned: &Planned,
    inode: &'a Inode,
) -> std::borrow::Cow<'a, [u8]> {
    match &inode.content {
        Content::Directory(directory) => {
            let mut bytes = Vec::new();
            let resolve =
                |id: super::InodeId| (plan.nids[id.index()], file_type(&tree.inode(id).content).dirent);
            encode(&names(directory, planned.id), resolve, &mut bytes);
            bytes.into()
        }
        Content::File(FileData::Inline(bytes)) | Content::Symlink(bytes) => (&bytes[..]).into(),
        _ => (&[][..]).into(),
    }
}

const _: () = assert!(BLOCK_SIZE.is_multiple_of(SLOT_SIZE), "a slot never crosses a block");
