//! Whole images, written and read back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::reader::{Reader, Seen};
use super::*;

/// Writes `tree` twice and reads it back; both images must be the same.
fn image_of(fill: impl Fn(&mut Tree, &mut DataWriter<'_, Vec<u8>>)) -> Vec<u8> {
    let write = || {
        let mut image = Vec::new();
        let mut data = DataWriter::new(&mut image);
        let mut tree = Tree::new();
        fill(&mut tree, &mut data);
        write_image(&mut tree, data, ImageOptions::default()).expect("fits");
        image
    };
    let image = write();
    assert!(image == write(), "the same tree gives the same image");
    image
}

fn read(image: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    Reader::open(image).walk()
}

fn add_file(
    tree: &mut Tree,
    data: &mut DataWriter<'_, Vec<u8>>,
    name: &[u8],
    meta: Metadata,
    bytes: &[u8],
) -> InodeId {
    let content = if bytes.len() <= INLINE_LIMIT {
        FileData::Inline(bytes.into())
    } else {
        let extent = data.reserve(bytes.len() as u64).expect("room");
        data.write(extent, 0, bytes).expect("in memory");
        FileData::Blocks(extent)
    };
    tree.insert(Tree::ROOT, name, meta, Vec::new(), Content::File(content), 0)
}

#[test]
fn an_empty_root_is_an_image() {
    let image = image_of(|_, _| {});
    let seen = read(&image);
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[&b""[..]].mode, seen[&b""[..]].links), (0o040_755, 2));
    assert_ne!(seen[&b""[..]].nid, 0, "inode number 0 means no entry to programs");
}

#[test]
fn every_size_around_the_limits_comes_back() {
    let sizes = [0, 1, 31, 2047, 2048, 2049, 4032, 4095, 4096, 4097, 8192, 10_000, 3 << 20];
    let bytes = |size: usize| (0..size).map(|n| (n * 7 + size) as u8).collect::<Vec<_>>();
    let image = image_of(|tree, data| {
        for size in sizes {
            add_file(tree, data, size.to_string().as_bytes(), Metadata::root_owned(0o644), &bytes(size));
        }
    });
    let seen = read(&image);
    for size in sizes {
        assert!(seen[format!("/{size}").as_bytes()].content == bytes(size), "{size}");
    }
}

#[test]
fn large_files_are_whole_blocks_so_that_they_can_be_mapped() {
    let image = image_of(|tree, data| {
        add_file(tree, data, b"f", Metadata::default(), &[0xab; INLINE_LIMIT + 1]);
    });
    let at = image.iter().position(|byte| *byte == 0xab).expect("there");
    assert_eq!(at % 4096, 0);
}

#[test]
fn numbers_too_large_for_the_compact_form_come_back() {
    let large = Metadata {
        mode: 0o7777,
        uid: u32::MAX - 1,
        gid: 65_536,
        mtime: Timestamp { seconds: -1, nanos: 999_999_999 },
    };
    let image = image_of(|tree, data| {
        add_file(tree, data, b"a", large, b"");
        add_file(tree, data, b"b", Metadata::root_owned(0o600), b"");
        let linked = add_file(tree, data, b"linked", Metadata::root_owned(0o600), b"");
        for n in 0..70_000 {
            tree.link(Tree::ROOT, format!("link{n}").as_bytes(), linked, 0);
        }
    });
    let seen = read(&image);
    let a = &seen[&b"/a"[..]];
    assert_eq!((a.mode, a.uid, a.gid, a.mtime), (0o107_777, u32::MAX - 1, 65_536, (-1, 999_999_999)));
    assert_eq!(seen[&b"/b"[..]].mtime, (0, 0));
    assert_eq!(seen[&b"/linked"[..]].links, 70_001);
    assert_eq!(seen[&b"/linked"[..]], seen[&b"/link69999"[..]]);
}

#[test]
fn directories_with_very_many_and_very_long_names_come_back() {
    let name = |n: usize| format!("{n:06}{}", "x".repeat(n % 250)).into_bytes();
    let image = image_of(|tree, _| {
        let directory = tree.make_directory(Tree::ROOT, &[b'd'; 255], Metadata::default(), 0);
        for n in 0..20_000 {
            tree.insert(directory, &name(n), Metadata::default(), Vec::new(), Content::Fifo, 0);
        }
    });
    let seen = read(&image);
    assert_eq!(seen.len(), 20_002);
    for n in 0..20_000 {
        assert!(seen.contains_key(&[b"/", &[b'd'; 255][..], b"/", &name(n)].concat()));
    }
}

#[test]
fn attributes_larger_than_a_block_push_the_data_out() {
    let big = Xattr::new(b"user.big", &[9; 60_000]).expect("valid");
    let image = image_of(|tree, data| {
        let file = add_file(tree, data, b"f", Metadata::default(), b"small");
        tree.inode_mut(file).xattrs = vec![big.clone()];
        let link = Content::Symlink((*b"target").into());
        tree.insert(Tree::ROOT, b"l", Metadata::default(), vec![big.clone()], link, 0);
        let own = Xattr::new(b"trusted.own", &[8; 5000]).expect("valid");
        tree.inode_mut(Tree::ROOT).xattrs = vec![own];
    });
    let seen = read(&image);
    assert_eq!(seen[&b"/f"[..]].content, b"small");
    assert_eq!(seen[&b"/l"[..]].content, b"target");
    assert_eq!(seen[&b"/f"[..]].xattrs[&b"user.big"[..]].len(), 60_000);
    assert_eq!(seen[&b""[..]].xattrs[&b"trusted.own"[..]].len(), 5000);
}

#[test]
fn more_attributes_than_fit_are_an_error() {
    let mut tree = Tree::new();
    tree.inode_mut(Tree::ROOT).xattrs =
        (0..5).filter_map(|n| Xattr::new(format!("user.{n}").as_bytes(), &[0; 65_535])).collect();
    let mut image = Vec::new();
    let data = DataWriter::new(&mut image);
    let result = write_image(&mut tree, data, ImageOptions::default());
    assert!(matches!(result, Err(Error::XattrsTooLarge { .. })));
}

/// One random entry: where it goes, what it is, its metadata.
#[derive(Debug, Clone)]
struct Random {
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: u8,
    content: Vec<u8>,
    meta: (u16, u32, u32, i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn random() -> impl Strategy<Value = Random> {
    let byte = (1u8..=255).prop_filter("a name has no slash", |byte| *byte != b'/');
    let name = prop::collection::vec(byte, 1..=255)
        .prop_filter("a special name", |name| *name != b"." && *name != b"..");
    let namespace = prop::sample::select(vec![&b"user."[..], b"security.", b"trusted."]);
    let xattr = (namespace, "[a-c]{1,3}", prop::collection::vec(any::<u8>(), 0..300));
    let xattrs = prop::collection::vec(xattr, 0..4);
    let meta = (0u16..0o10000, prop_oneof![Just(0), any::<u32>()], prop_oneof![Just(0), any::<u32>()]);
    let time = prop_oneof![Just((0, 0)), (any::<i64>(), 0u32..1_000_000_000)];
    let content = prop::collection::vec(any::<u8>(), 0..6000);
    (any::<prop::sample::Index>(), name, 0u8..7, content, meta, time, xattrs).prop_map(
        |(parent, name, kind, content, (mode, uid, gid), (seconds, nanos), xattrs)| Random {
            parent,
            name,
            kind,
            content,
            meta: (mode, uid, gid, seconds, nanos),
            xattrs: xattrs
                .into_iter()
                .map(|(space, name, value)| ([space, name.as_bytes()].concat(), value))
                .collect(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any tree comes back as it was.
    #[test]
    fn any_tree_comes_back(entries in prop::collection::vec(random(), 0..60)) {
        let mut expected = BTreeMap::new();
        let mut image = Vec::new();
        let mut data = DataWriter::new(&mut image);
        let mut tree = Tree::new();
        let mut directories = vec![(Vec::new(), Tree::ROOT)];
        for entry in entries {
            let (path, parent) = directories[entry.parent.index(directories.len())].clone();
            if tree.lookup(parent, &entry.name).is_some() {
                continue;
            }
            let path = [&path[..], b"/", &entry.name].concat();
            let (mode, uid, gid, seconds, nanos) = entry.meta;
            let meta = Metadata { mode, uid, gid, mtime: Timestamp { seconds, nanos } };
            let mut xattrs: Vec<Xattr> =
                entry.xattrs.iter().filter_map(|(name, value)| Xattr::new(name, value)).collect();
            xattrs.sort();
            let device = Device { major: u32::from(mode), minor: uid & 0xf_ffff };
            let (type_bits, content, stored) = match entry.kind {
                0 => {
                    let directory = tree.make_directory(parent, &entry.name, meta, 0);
                    tree.inode_mut(directory).xattrs = xattrs;
                    directories.push((path.clone(), directory));
                    expected.insert(path, (0o040_000 | mode, meta, Vec::new(), entry.xattrs));
                    continue;
                }
                1 => (0o120_000, Content::Symlink(entry.content.clone().into()), entry.content),
                2 => (0o020_000, Content::CharDevice(device), Vec::new()),
                3 => (0o010_000, Content::Fifo, Vec::new()),
                4 => (0o140_000, Content::Socket, Vec::new()),
                _ if entry.content.len() > INLINE_LIMIT => {
                    let extent = data.reserve(entry.content.len() as u64).expect("room");
                    data.write(extent, 0, &entry.content).expect("in memory");
                    (0o100_000, Content::File(FileData::Blocks(extent)), entry.content)
                }
                _ => (0o100_000, Content::File(FileData::Inline(entry.content.clone().into())), entry.content),
            };
            tree.insert(parent, &entry.name, meta, xattrs, content, 0);
            expected.insert(path, (type_bits | mode, meta, stored, entry.xattrs));
        }
        write_image(&mut tree, data, ImageOptions::default()).expect("fits");
        let mut seen = read(&image);
        seen.remove(&b""[..]);
        prop_assert_eq!(seen.len(), expected.len());
        for (path, inode) in seen {
            let (mode, meta, content, xattrs) = expected.remove(&path).expect("was put there");
            prop_assert_eq!((inode.mode, inode.uid, inode.gid), (mode, meta.uid, meta.gid));
            prop_assert_eq!(inode.mtime, (meta.mtime.seconds, meta.mtime.nanos));
            prop_assert!(inode.content == content, "content of {:?}", path);
            prop_assert_eq!(inode.xattrs, xattrs);
        }
    }
}
