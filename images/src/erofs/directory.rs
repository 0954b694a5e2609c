//! Directory data: blocks of sorted entries, each block an array of fixed records followed by their names.

use super::layout::DIRENT_SIZE;
use super::{BLOCK_SIZE, Directory, InodeId};

/// A name as it will be stored; `.` and `..` are among them.
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: InodeId,
}

/// The names of `directory`, whose own inode is `id`, in the byte order that lookups rely on.
pub(super) fn names(directory: &Directory, id: InodeId) -> Vec<Name<'_>> {
    let mut names: Vec<Name<'_>> = Vec::with_capacity(directory.entries.len() + 2);
    names.extend(directory.entries.iter().map(|(name, entry)| Name { name, inode: entry.inode }));
    for (name, inode) in [(&b"."[..], id), (b"..", directory.parent)] {
        let at = names.partition_point(|other| other.name < name);
        names.insert(at, Name { name, inode });
    }
    names
}

/// Bytes that the names take: whole blocks, except the last one, which ends with its last name.
pub(super) fn data_size(names: &[Name<'_>]) -> u64 {
    let mut size = 0;
    let mut rest = names;
    while !rest.is_empty() {
        let (count, used) = fill_block(rest);
        rest = &rest[count..];
        size += if rest.is_empty() { used as u64 } else { BLOCK_SIZE };
    }
    size
}

/// Appends the data that [`data_size`] measured. `resolve` gives an inode's address and entry type.
pub(super) fn encode(names: &[Name<'_>], resolve: impl Fn(InodeId) -> (u64, u8), out: &mut Vec<u8>) {
    let mut rest = names;
    while !rest.is_empty() {
        let start = out.len();
        let (count, _) = fill_block(rest);
        let (block, others) = rest.split_at(count);
        let mut name_offset = count * DIRENT_SIZE;
        for entry in block {
            let (nid, file_type) = resolve(entry.inode);
            out.extend_from_slice(&nid.to_le_bytes());
            out.extend_from_slice(&(name_offset as u16).to_le_bytes());
            out.extend_from_slice(&[file_type, 0]);
            name_offset += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        if !others.is_empty() {
            out.resize(start + BLOCK_SIZE as usize, 0);
        }
        rest = others;
    }
}

/// How many of `names` fit one block, and the bytes they take.
fn fill_block(names: &[Name<'_>]) -> (usize, usize) {
    let mut used = 0;
    for (count, entry) in names.iter().enumerate() {
        let with_it = used + DIRENT_SIZE + entry.name.len();
        if with_it > BLOCK_SIZE as usize {
            return (count, used);
        }
        used = with_it;
    }
    (names.len(), used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Content, Metadata, Tree};

    #[test]
    fn dot_names_are_sorted_in_among_the_others() {
        let mut tree = Tree::new();
        for name in [&b"a"[..], b"!", b"..a", b"-"] {
            tree.insert(Tree::ROOT, name, Metadata::default(), Vec::new(), Content::Fifo, 0);
        }
        let names = names(tree.directory(Tree::ROOT), Tree::ROOT);
        let names: Vec<&[u8]> = names.iter().map(|entry| entry.name).collect();
        assert_eq!(names, [&b"!"[..], b"-", b".", b"..", b"..a", b"a"]);
    }

    #[test]
    fn the_measured_size_is_the_encoded_size() {
        let mut tree = Tree::new();
        for n in 0..3000 {
            let name = format!("{n:0width$}", width = 4 + n % 252);
            tree.insert(Tree::ROOT, name.as_bytes(), Metadata::default(), Vec::new(), Content::Fifo, 0);
            let names = names(tree.directory(Tree::ROOT), Tree::ROOT);
            if n % 37 == 0 {
                let mut data = Vec::new();
                encode(&names, |_| (1, 5), &mut data);
                assert_eq!(data.len() as u64, data_size(&names));
            }
        }
    }
}
