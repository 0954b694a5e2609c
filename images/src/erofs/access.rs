//! Reading an image that [`super::write_image`] made, one inode at a time.
//!
//! Nothing in the file is believed beyond its own bounds: a damaged image gives an error, not a wrong read, a loop
//! without end or a panic.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::layout::{DIRENT_SIZE, NO_BLOCK, SLOT_SIZE, SUPERBLOCK_OFFSET};

const BLOCK: u64 = 4096;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Largest directory or link target that is read.
const MAX_SMALL: u64 = 64 << 20;
/// Largest extended attributes of one inode (their size is a 16-bit count of words).
const MAX_XATTRS: usize = 12 + 4 * 0xffff;
const INLINE: u16 = 2;

/// Name and value of an extended attribute.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

/// An image, open.
pub(super) struct Access {
    file: File,
    meta: u64,
    shared: u64,
    root: u64,
    epoch: (i64, u32),
}

/// An inode as it is on disk.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) nid: u64,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) size: u64,
    /// First block of its data.
    block: u32,
    /// How much of the data is behind the inode, and where.
    tail: u64,
    tail_at: u64,
    xattrs: (u64, usize),
}

impl Access {
    /// Opens the image at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut access = Self { file: File::open(path)?, meta: 0, shared: 0, root: 0, epoch: (0, 0) };
        let block: [u8; 128] = access.bytes(SUPERBLOCK_OFFSET as u64)?;
        if u32_at(&block, 0) != MAGIC {
            return Err(damaged("no EROFS image"));
        }
        access.root = u16_at(&block, 14).into();
        access.epoch = (u64_at(&block, 24).cast_signed(), u32_at(&block, 32));
        access.meta = u64::from(u32_at(&block, 40)) * BLOCK;
        access.shared = u64::from(u32_at(&block, 44)) * BLOCK;
        Ok(access)
    }

    /// The root directory.
    pub(super) fn root(&self) -> io::Result<Node> {
        self.node(self.root)
    }

    /// The inode with this number.
    pub(super) fn node(&self, nid: u64) -> io::Result<Node> {
        let at = nid.checked_mul(SLOT_SIZE).and_then(|offset| offset.checked_add(self.meta));
        let at = at.ok_or_else(|| damaged("an inode outside the image"))?;
        let head: [u8; 32] = self.bytes(at)?;
        let format = u16_at(&head, 0);
        let count = usize::from(u16_at(&head, 2));
        let xattr_size = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let (mode, block) = (u16_at(&head, 4), u32_at(&head, 16));
        let (length, node) = if format & 1 == 1 {
            let all: [u8; 64] = self.bytes(at)?;
            let mtime = (u64_at(&all, 32).cast_signed(), u32_at(&all, 40));
            let owner = (u32_at(&all, 24), u32_at(&all, 28));
            (64, (u64_at(&all, 8), u32_at(&all, 44), owner, mtime))
        } else {
            let owner = (u16_at(&head, 24).into(), u16_at(&head, 26).into());
            (32, (u32_at(&head, 8).into(), u16_at(&head, 6).into(), owner, self.epoch))
        };
        let (size, links, (uid, gid), mtime) = node;
        let tail = if format >> 1 & 7 == INLINE { size % BLOCK } else { 0 };
        let xattrs = (at + length, xattr_size);
        let tail_at = at + length + xattr_size as u64;
        Ok(Node { nid, mode, uid, gid, mtime, links, size, block, tail, tail_at, xattrs })
    }

    /// Reads data of `node` from `offset` on; 0 at its end.
    pub(super) fn read(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let whole = node.size - node.tail;
        let (at, left) = match offset.checked_sub(whole) {
            Some(into) => (node.tail_at + into.min(node.tail), node.tail - into.min(node.tail)),
            None if node.block == NO_BLOCK => return Err(damaged("a file without its blocks")),
            None => (u64::from(node.block) * BLOCK + offset, whole - offset),
        };
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut buffer[..count], at)?;
        Ok(count)
    }

    /// All data of a directory or link.
    pub(super) fn content(&self, node: &Node) -> io::Result<Vec<u8>> {
        if node.size > MAX_SMALL {
            return Err(damaged("a directory or link of impossible size"));
        }
        let mut bytes = vec![0; node.size as usize];
        let mut done = 0;
        while done < bytes.len() {
            done += self.read(node, done as u64, &mut bytes[done..])?;
        }
        Ok(bytes)
    }

    /// Names and inode numbers in a directory, without `.` and `..`.
    pub(super) fn entries(&self, node: &Node) -> io::Result<Vec<(Vec<u8>, u64)>> {
        let content = self.content(node)?;
        let mut entries = Vec::new();
        for block in content.chunks(BLOCK as usize) {
            let start = |number: usize| {
                block.get(number * DIRENT_SIZE + 8..).map(|rest| usize::from(u16_at(rest, 0)))
            };
            let count = start(0).unwrap_or_default() / DIRENT_SIZE;
            for number in 0..count {
                let end = if number + 1 < count { start(number + 1) } else { Some(block.len()) };
                let (Some(begin), Some(end)) = (start(number), end) else {
                    return Err(damaged("a directory without its names"));
                };
                let name = block.get(begin..end).ok_or_else(|| damaged("a name outside its directory"))?;
                let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
                if name.is_empty() || name.contains(&b'/') {
                    return Err(damaged("a name that is none"));
                }
                if name != b"." && name != b".." {
                    let nid = block.get(number * DIRENT_SIZE..).map(|rest| u64_at(rest, 0));
                    entries.push((name, nid.unwrap_or_default()));
                }
            }
        }
        Ok(entries)
    }

    /// Extended attributes.
    pub(super) fn xattrs(&self, node: &Node) -> io::Result<Vec<Attribute>> {
        let (at, size) = node.xattrs;
        if size < 12 {
            return Ok(Vec::new());
        }
        let mut body = vec![0; size.min(MAX_XATTRS)];
        self.file.read_exact_at(&mut body, at)?;
        let mut found = Vec::new();
        let shared = usize::from(body[4]);
        for id in body[12..].chunks_exact(4).take(shared) {
            let at = self.shared + 4 * u64::from(u32_at(id, 0));
            let head: [u8; 4] = self.bytes(at)?;
            let mut entry = vec![0; 4 + usize::from(head[0]) + usize::from(u16_at(&head, 2))];
            self.file.read_exact_at(&mut entry, at)?;
            found.extend(xattr(&entry).map(|(entry, _)| entry));
        }
        let mut rest = body.get(12 + 4 * shared..).unwrap_or_default();
        while let Some((entry, len)) = xattr(rest) {
            found.push(entry);
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(found)
    }

    fn bytes<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// The first attribute in `bytes`, and how many bytes it takes.
fn xattr(bytes: &[u8]) -> Option<(Attribute, usize)> {
    let head = bytes.get(..4)?;
    let (name_len, value_len) = (usize::from(head[0]), usize::from(u16_at(head, 2)));
    let prefix: &[u8] = match head[1] {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => return None,
    };
    let name = [prefix, bytes.get(4..4 + name_len)?].concat();
    let value = bytes.get(4 + name_len..4 + name_len + value_len)?.to_vec();
    Some(((name, value), (4 + name_len + value_len).next_multiple_of(4)))
}

pub(super) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the image is damaged: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// The field at `at`; zeros where the bytes end before it.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
