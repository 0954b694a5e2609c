//! Trees packed and extracted again, without root.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::{Incoming, Options, Owners, Target, Tree, Trust, attribute, extract};

const OPTIONS: Options = Options { trust: Trust::Owner, owners: Owners::Own };
const GUEST: Options = Options { trust: Trust::Guest { set_id: false }, owners: Owners::Own };

fn path(base: &tempfile::TempDir, name: &str) -> String {
    base.path().join(name).to_str().unwrap().to_owned()
}

/// Reads `source` and writes it to `destination` as the plan's source says.
fn copy(from: &str, destination: &str, incoming: Incoming<'_>) -> Result<(), String> {
    let mut tar = Vec::new();
    Tree::find(Path::new(from), false).unwrap().pack(".", &mut tar).unwrap();
    write_tar(&tar, destination, incoming, OPTIONS)
}

fn write_tar(
    mut tar: &[u8],
    destination: &str,
    incoming: Incoming<'_>,
    options: Options,
) -> Result<(), String> {
    Target::find(Path::new(destination), incoming)
        .and_then(|target| extract(&mut tar, &target, options, &mut |_| ()))
        .map_err(|error| error.to_string())
}

fn file(name: &str) -> Incoming<'_> {
    Incoming::File { name }
}

fn directory(name: &str) -> Incoming<'_> {
    Incoming::Directory { name: Some(name) }
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let base = tempfile::tempdir().unwrap();
    let tree = base.path().join("tree");
    let long = "n".repeat(200);
    fs::create_dir_all(tree.join("sub/deep")).unwrap();
    fs::write(tree.join("sub/file"), vec![7; 3 << 20]).unwrap();
    fs::set_permissions(tree.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(tree.join("sub/file"), tree.join("other name")).unwrap();
    fs::write(tree.join(&long), "long").unwrap();
    symlink(&long, tree.join("link")).unwrap();
    symlink("/absent", tree.join("dangling")).unwrap();
    rustix::fs::lsetxattr(tree.join("sub/deep"), "user.key", b"a=b\n\0", rustix::fs::XattrFlags::empty())
        .ok();
    copy(&path(&base, "tree"), &path(&base, "copy"), directory("tree")).unwrap();
    let copy = base.path().join("copy");
    for name in ["sub", "sub/deep", "sub/file", "other name", &long, "link", "dangling"] {
        let (a, b) = (tree.join(name), copy.join(name));
        let (a, b) = (a.symlink_metadata().unwrap(), b.symlink_metadata().unwrap());
        assert_eq!((a.mode(), a.mtime(), a.nlink()), (b.mode(), b.mtime(), b.nlink()), "{name}");
    }
    assert_eq!(fs::read(tree.join("sub/file")).unwrap(), fs::read(copy.join("other name")).unwrap());
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new(&long));
    assert_eq!(fs::read_to_string(copy.join("link")).unwrap(), "long");
    let value = attribute(&copy.join("sub/deep"), b"user.key").unwrap();
    assert_eq!(value, attribute(&tree.join("sub/deep"), b"user.key").unwrap());
}

#[test]
fn destinations_are_those_of_docker_cp() {
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| path(&base, name);
    fs::create_dir_all(at("src/d")).unwrap();
    fs::write(at("src/f"), "new").unwrap();
    fs::write(at("src/d/x"), "x").unwrap();
    fs::create_dir(at("dst")).unwrap();
    fs::write(at("old"), "old, and longer").unwrap();
    symlink("old", at("to-old")).unwrap();
    symlink("nowhere/at/all", at("to-nothing")).unwrap();
    let content = Incoming::Directory { name: None };
    let f = at("src/f");
    let d = at("src/d");
    copy(&f, &at("made"), file("f")).unwrap();
    copy(&f, &at("dst"), file("f")).unwrap();
    copy(&f, &at("dst/"), file("g")).unwrap();
    copy(&f, &at("to-old"), file("f")).unwrap();
    copy(&d, &at("made-dir"), directory("d")).unwrap();
    copy(&d, &at("dst"), directory("d")).unwrap();
    copy(&d, &at("dst"), content).unwrap();
    let names = ["made", "dst/f", "dst/g", "old", "made-dir/x", "dst/d/x", "dst/x"];
    let texts = names.map(|name| fs::read_to_string(at(name)).unwrap());
    assert_eq!(texts, ["new", "new", "new", "new", "x", "x", "x"]);
    assert!(Path::new(&at("to-old")).is_symlink());
    for (from, to, source, why) in [
        (&f, "absent/", file("f"), "no such directory"),
        (&f, "absent/f", file("f"), "absent"),
        (&d, "old", directory("d"), "cannot replace a file"),
        (&d, "old", content, "cannot replace a file"),
        (&f, "dst", file("d"), "cannot replace a directory"),
        (&d, "dst", directory("f"), "cannot replace a file"),
        (&f, "dst", file("../f"), "no name"),
        (&f, "old", Incoming::Archive, "only go into a directory"),
        (&f, "old/x", file("f"), "old"),
    ] {
        let error = copy(from, &at(to), source).unwrap_err();
        assert!(error.contains(why), "{to}: {error}");
    }
}

#[test]
fn an_archive_cannot_lead_outside_its_destination_by_its_names() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("in")).unwrap();
    for name in ["../out", "a/../../out"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend([b'x'; 512]);
        tar.extend([0; 1024]);
        let error = write_tar(&tar, &path(&base, "in"), Incoming::Archive, OPTIONS).unwrap_err();
        assert!(error.contains("leads outside"), "{error}");
    }
    assert!(!base.path().join("out").exists());
}

#[test]
fn a_truncated_archive_is_an_error() {
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("f"), vec![1; 100_000]).unwrap();
    let mut tar = Vec::new();
    Tree::find(&base.path().join("f"), false).unwrap().pack(".", &mut tar).unwrap();
    assert!(write_tar(&tar[..50_000], &path(&base, "g"), file("f"), OPTIONS).is_err());
}

/// A tar stream of entries: kind, name, link target.
fn stream(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_size(if *kind == tar::EntryType::Regular { 4 } else { 0 });
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        let content: &[u8] = if *kind == tar::EntryType::Regular { b"evil" } else { b"" };
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn no_link_leads_a_guests_stream_out_of_its_destination() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| path(&base, name);
    fs::create_dir(at("secret")).unwrap();
    fs::write(at("secret/file"), "precious").unwrap();
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o711)).unwrap();
    let secret = at("secret");
    for (number, entries) in [
        vec![(Symlink, "x", secret.as_str()), (Regular, "x/file", "")],
        vec![(Symlink, "x", "../secret"), (Regular, "x/new", "")],
        vec![(Symlink, "x", secret.as_str()), (Directory, "x/made", "")],
        vec![(Symlink, "x", "../secret"), (Link, "stolen", "x/file")],
        vec![(Symlink, "a", ".."), (Symlink, "b", "a/secret"), (Regular, "b/file", "")],
        vec![(Symlink, "x", secret.as_str()), (Link, "y", "x"), (Regular, "y/file", "")],
    ]
    .into_iter()
    .enumerate()
    {
        let destination = at(&format!("dst{number}"));
        fs::create_dir(&destination).unwrap();
        let result = write_tar(&stream(&entries), &destination, Incoming::Archive, GUEST);
        assert!(result.is_err(), "{entries:?}");
        assert!(!Path::new(&destination).join("stolen").exists());
    }
    // These two put something in the link's place.
    for (number, kind) in [Directory, Regular].into_iter().enumerate() {
        let destination = at(&format!("own{number}"));
        fs::create_dir(&destination).unwrap();
        let entries = [(Symlink, "x", secret.as_str()), (kind, "x", "")];
        write_tar(&stream(&entries), &destination, Incoming::Archive, GUEST).unwrap();
        assert!(!Path::new(&destination).join("x").is_symlink());
    }
    assert_eq!(fs::read_to_string(at("secret/file")).unwrap(), "precious");
    assert_eq!(fs::read_dir(at("secret")).unwrap().count(), 1);
    assert_eq!(fs::metadata(at("secret")).unwrap().mode() & 0o777, 0o711);
}

#[test]
fn a_guest_gives_no_devices_and_no_power() {
    use tar::EntryType::{Char, Fifo, Regular, Symlink};
    let base = tempfile::tempdir().unwrap();
    let destination = path(&base, "");
    let tar =
        stream(&[(Char, "null", ""), (Fifo, "fifo", ""), (Regular, "tool", ""), (Symlink, "ok", "tool")]);
    let mut left_out = Vec::new();
    let target = Target::find(Path::new(&destination), Incoming::Archive).unwrap();
    extract(&mut &tar[..], &target, GUEST, &mut |path| left_out.push(path.to_owned())).unwrap();
    assert_eq!(left_out, [Path::new("null"), Path::new("fifo")]);
    assert_eq!(fs::metadata(base.path().join("ok")).unwrap().mode() & 0o7777, 0o755);
    let kept = Options { trust: Trust::Guest { set_id: true }, owners: Owners::Own };
    write_tar(&tar, &destination, Incoming::Archive, kept).unwrap();
    assert_eq!(fs::metadata(base.path().join("tool")).unwrap().mode() & 0o7777, 0o4755);
}
