//! Archives made by hand, so that they can be as wrong as an attacker's, and what they unpack to.

use std::io::Cursor;

use crate::digest::{DiffId, Digest};
use crate::erofs::{Content, DataWriter, FileData, Inode, Tree};
use crate::unpack::{EntryError, Layer, Limits, UnpackError, unpack};

/// A tar archive being written.
#[derive(Default, Clone)]
pub(super) struct Archive(pub(super) Vec<u8>);

impl Archive {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.raw(b'5', path, "", 0o755, b"")
    }

    pub(super) fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(b'0', path, "", 0o644, data)
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path, target, 0o777, b"")
    }

    pub(super) fn hardlink(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path, target, 0o600, b"")
    }

    /// A PAX header for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (1..).find(|len| *len == rest + len.to_string().len()).expect("converges");
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(b'x', "pax", "", 0o644, &body)
    }

    /// Any entry at all, with the size of `data` in its header.
    pub(super) fn raw(self, flag: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(12345);
        header.set_size(data.len() as u64);
        header.as_old_mut().linkflag = [flag];
        self.header(header).data(data)
    }

    pub(super) fn header(mut self, mut header: tar::Header) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// What unpacking gave: the tree, and the image's bytes as far as file data goes.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) tree: Tree,
    pub(super) image: Vec<u8>,
}

pub(super) fn unpack_with(layers: &[Vec<u8>], limits: &Limits) -> Result<Unpacked, UnpackError> {
    let layers = layers.iter().map(|bytes| Layer {
        name: "layer".to_owned(),
        diff_id: DiffId(Digest::of(bytes)),
        source: Box::new(Cursor::new(bytes.clone())),
    });
    let mut image = Vec::new();
    let mut data = DataWriter::new(&mut image);
    let tree = unpack(layers.collect(), &mut data, limits, &mut |_| {})?;
    data.flush_for_test();
    Ok(Unpacked { tree, image })
}

pub(super) fn unpacked(archives: &[Archive]) -> Unpacked {
    let layers: Vec<Vec<u8>> = archives.iter().map(|archive| archive.clone().end()).collect();
    unpack_with(&layers, &Limits::default()).expect("a valid image")
}

/// Why a layer made of `archive` is refused.
pub(super) fn refusal(archive: Archive) -> EntryError {
    match unpack_with(&[archive.end()], &Limits::default()) {
        Err(UnpackError::Entry { source, .. }) => *source,
        other => panic!("not refused for an entry: {other:?}"),
    }
}

impl Unpacked {
    /// The inode at `path`, following no link.
    pub(super) fn at(&self, path: &str) -> Option<&Inode> {
        let mut inode = Tree::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            self.tree.inode(inode).directory()?;
            inode = self.tree.lookup(inode, name.as_bytes())?.inode;
        }
        Some(self.tree.inode(inode))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.at(path).is_some()
    }

    /// The content of the file at `path`.
    pub(super) fn data(&self, path: &str) -> Vec<u8> {
        match &self.at(path).unwrap_or_else(|| panic!("no {path}")).content {
            Content::File(FileData::Inline(bytes)) => bytes.to_vec(),
            Content::File(FileData::Blocks(extent)) => {
                let start = extent.first_block as usize * 4096;
                let mut bytes = vec![0; extent.size as usize];
                let there = self.image.get(start..).unwrap_or_default();
                let count = there.len().min(bytes.len());
                bytes[..count].copy_from_slice(&there[..count]);
                bytes
            }
            other => panic!("{path} is no file: {other:?}"),
        }
    }

    /// All paths, sorted.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        let mut pending = vec![(String::new(), Tree::ROOT)];
        while let Some((path, inode)) = pending.pop() {
            for (name, entry) in &self.tree.directory(inode).entries {
                let path = format!("{path}/{}", name.escape_ascii());
                if self.tree.inode(entry.inode).directory().is_some() {
                    pending.push((path.clone(), entry.inode));
                }
                paths.push(path);
            }
        }
        paths.sort();
        paths
    }
}
