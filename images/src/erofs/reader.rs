//! A reader for tests, written from the format's description and not from the writer.

use std::collections::BTreeMap;

/// What the reader saw of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    /// A file's content, a link's target; empty for others.
    pub(super) content: Vec<u8>,
    /// `i_u`: the device number of a device node.
    pub(super) device: u32,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) nid: u64,
}

pub(super) struct Reader<'a> {
    image: &'a [u8],
    meta: usize,
    shared: usize,
    epoch: (i64, u32),
}

impl<'a> Reader<'a> {
    pub(super) fn open(image: &'a [u8]) -> Self {
        let mut reader = Self { image, meta: 0, shared: 0, epoch: (0, 0) };
        assert_eq!(reader.u32(1024), 0xe0f5_e1e2, "magic");
        assert_eq!(image.len(), reader.u32(1024 + 36) as usize * 4096, "length");
        reader.epoch = (reader.u64(1024 + 24) as i64, reader.u32(1024 + 32));
        reader.meta = reader.u32(1024 + 40) as usize * 4096;
        reader.shared = reader.u32(1024 + 44) as usize * 4096;
        reader
    }

    /// Every path of the image; the root's is empty.
    pub(super) fn walk(&self) -> BTreeMap<Vec<u8>, Seen> {
        let root = u64::from(self.u16(1024 + 14));
        let mut seen = BTreeMap::from([(Vec::new(), self.inode(root))]);
        let mut pending = vec![(Vec::new(), root, root)];
        while let Some((path, nid, parent)) = pending.pop() {
            let content = seen[&path].content.clone();
            let mut names = self.names(&content);
            assert!(names.is_sorted_by(|a, b| a.0 < b.0), "names are sorted and unique");
            for (special, expected) in [(&b"."[..], nid), (b"..", parent)] {
                let at = names.iter().position(|(name, ..)| name == special).expect("a special name");
                assert_eq!(names.remove(at).1, expected);
            }
            for (name, child, file_type) in names {
                let path = [&path[..], b"/", &name].concat();
                let inode = self.inode(child);
                assert_eq!(
                    file_type,
                    [5, 3, 2, 4, 1, 7, 6][[1, 2, 4, 6, 8, 10, 12]
                        .iter()
                        .position(|t| *t == inode.mode >> 12)
                        .expect("a type")]
                );
                if inode.mode >> 12 == 4 {
                    pending.push((path.clone(), child, nid));
                }
                seen.insert(path, inode);
            }
        }
        for inode in seen.values_mut().filter(|inode| inode.mode >> 12 == 4) {
            inode.content.clear();
        }
        seen
    }

    fn inode(&self, nid: u64) -> Seen {
        let at = self.meta + nid as usize * 32;
        let format = self.u16(at);
        let (extended, layout) = (format & 1 == 1, format >> 1 & 7);
        let xattr_count = usize::from(self.u16(at + 2));
        let xattr_size = if xattr_count == 0 { 0 } else { 12 + 4 * (xattr_count - 1) };
        let (size, links, uid, gid, mtime) = if extended {
            let mtime = (self.u64(at + 32) as i64, self.u32(at + 40));
            (self.u64(at + 8), self.u32(at + 44), self.u32(at + 24), self.u32(at + 28), mtime)
        } else {
            let ids = (u32::from(self.u16(at + 24)), u32::from(self.u16(at + 26)));
            (u64::from(self.u32(at + 8)), u32::from(self.u16(at + 6)), ids.0, ids.1, self.epoch)
        };
        let head = if extended { 64 } else { 32 };
        assert!(at % 4096 + head <= 4096, "the inode crosses a block");
        let union = self.u32(at + 16);
        let mode = self.u16(at + 4);
        let has_data = matches!(mode >> 12, 4 | 8 | 10);
        let mut content = Vec::new();
        if has_data {
            let tail = if layout == 2 { size as usize % 4096 } else { 0 };
            let start = union as usize * 4096;
            if size as usize > tail {
                content.extend_from_slice(&self.image[start..start + size as usize - tail]);
            }
            let tail_at = at + head + xattr_size;
            assert!(tail == 0 || tail_at % 4096 + tail <= 4096, "inline data crosses a block");
            content.extend_from_slice(&self.image[tail_at..tail_at + tail]);
        }
        let xattrs = self.xattrs(at + head, xattr_size);
        Seen { mode, uid, gid, mtime, links, content, device: if has_data { 0 } else { union }, xattrs, nid }
    }

    fn names(&self, content: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut names = Vec::new();
        for block in content.chunks(4096) {
            let name_at = |n: usize| usize::from(u16::from_le_bytes([block[n * 12 + 8], block[n * 12 + 9]]));
            let count = name_at(0) / 12;
            for n in 0..count {
                let end = if n + 1 < count { name_at(n + 1) } else { block.len() };
                let name: Vec<u8> =
                    block[name_at(n)..end].iter().copied().take_while(|byte| *byte != 0).collect();
                let nid = u64::from_le_bytes(block[n * 12..n * 12 + 8].try_into().expect("8 bytes"));
                names.push((name, nid, block[n * 12 + 10]));
            }
        }
        names
    }

    fn xattrs(&self, at: usize, size: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        if size == 0 {
            return xattrs;
        }
        let shared = usize::from(self.image[at + 4]);
        for n in 0..shared {
            let id = self.u32(at + 12 + 4 * n) as usize;
            let (entry, _) = self.xattr(self.shared + 4 * id);
            xattrs.extend([entry]);
        }
        let mut next = at + 12 + 4 * shared;
        while next < at + size {
            let (entry, len) = self.xattr(next);
            xattrs.extend([entry]);
            next += len;
        }
        assert_eq!(next, at + size);
        xattrs
    }

    fn xattr(&self, at: usize) -> ((Vec<u8>, Vec<u8>), usize) {
        let (name_len, value_len) = (usize::from(self.image[at]), usize::from(self.u16(at + 2)));
        let prefix: &[u8] = match self.image[at + 1] {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            other => panic!("prefix {other}"),
        };
        let name = [prefix, &self.image[at + 4..at + 4 + name_len]].concat();
        let value = self.image[at + 4 + name_len..at + 4 + name_len + value_len].to_vec();
        ((name, value), (4 + name_len + value_len).next_multiple_of(4))
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.image[at..at + 2].try_into().expect("2 bytes"))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.image[at..at + 4].try_into().expect("4 bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.image[at..at + 8].try_into().expect("8 bytes"))
    }
}
