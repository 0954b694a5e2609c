//! Layers on layers: whiteouts, opaque directories, replacements, links across.

use super::archive::{Archive, unpacked};
use crate::erofs::{Content, Tree};

#[test]
fn a_whiteout_removes_a_file_or_a_whole_directory() {
    let lower = Archive::new().file("a", b"1").dir("d").file("d/x", b"2").file("keep", b"3");
    let upper =
        Archive::new().file(".wh.a", b"").file(".wh.d", b"").file(".wh.never", b"").file("no/.wh.x", b"");
    assert_eq!(unpacked(&[lower, upper]).paths(), ["/keep"]);
}

#[test]
fn a_whiteout_leaves_what_its_own_layer_put_there_whatever_the_order() {
    let lower =
        || Archive::new().dir("d").file("d/old", b"1").dir("d/sub").file("d/sub/old", b"1").file("f", b"1");
    let entries = |archive: Archive| archive.file("d/sub/new", b"2").file("f", b"2");
    let whiteouts = |archive: Archive| archive.file(".wh.d", b"").file(".wh.f", b"");
    for upper in [whiteouts(entries(Archive::new())), entries(whiteouts(Archive::new()))] {
        let image = unpacked(&[lower(), upper]);
        assert_eq!(image.paths(), ["/d", "/d/sub", "/d/sub/new", "/f"]);
        assert_eq!(image.data("f"), b"2");
    }
}

#[test]
fn an_opaque_directory_hides_what_was_below_whatever_the_order() {
    let lower = || Archive::new().dir("d").file("d/old", b"1").dir("d/kept").file("d/kept/old", b"1");
    let new = |archive: Archive| archive.dir("d/kept").file("d/new", b"2");
    let opaque = |archive: Archive| archive.file("d/.wh..wh..opq", b"");
    for upper in [opaque(new(Archive::new().dir("d"))), new(opaque(Archive::new().dir("d")))] {
        assert_eq!(unpacked(&[lower(), upper]).paths(), ["/d", "/d/kept", "/d/new"]);
    }
}

#[test]
fn the_next_layer_can_hide_again_what_this_one_put_there() {
    let a = Archive::new().dir("d").file("d/a", b"");
    let b = Archive::new().file("d/.wh..wh..opq", b"").file("d/b", b"");
    let c = Archive::new().file("d/.wh..wh..opq", b"").file("d/c", b"");
    assert_eq!(unpacked(&[a, b, c]).paths(), ["/d", "/d/c"]);
}

#[test]
fn an_entry_replaces_one_of_another_type() {
    let lower = Archive::new().dir("dir").file("dir/x", b"").file("file", b"").symlink("link", "dir");
    let upper = Archive::new().file("dir", b"now a file").dir("file").dir("link").file("link/inside", b"");
    let image = unpacked(&[lower, upper]);
    assert_eq!(image.paths(), ["/dir", "/file", "/link", "/link/inside"]);
    assert_eq!(image.data("dir"), b"now a file");
    assert!(image.at("file").expect("there").directory().is_some());
}

#[test]
fn a_directory_on_a_directory_changes_metadata_and_keeps_what_is_in_it() {
    let lower = Archive::new().pax(&[("SCHILY.xattr.user.old", b"1")]).dir("d").file("d/x", b"");
    let upper = Archive::new().pax(&[("SCHILY.xattr.user.new", b"1")]).raw(b'5', "d", "", 0o1700, b"");
    let image = unpacked(&[lower, upper]);
    assert!(image.has("d/x"));
    let directory = image.at("d").expect("there");
    assert_eq!(directory.metadata.mode, 0o1700);
    let names: Vec<_> = directory.xattrs.iter().map(|xattr| xattr.name()).collect();
    assert_eq!(names, [b"user.new"]);
}

#[test]
fn adding_to_a_directory_does_not_touch_it() {
    let image = unpacked(&[Archive::new().dir("d"), Archive::new().file("d/x", b"")]);
    assert_eq!(image.at("d").expect("there").metadata.mtime.seconds, 12345);
}

#[test]
fn a_hard_link_reaches_into_lower_layers_and_outlives_the_other_name() {
    let lower = Archive::new().file("a", b"shared");
    let upper = Archive::new().hardlink("b", "a").file(".wh.a", b"");
    let image = unpacked(&[lower, upper]);
    assert_eq!(image.paths(), ["/b"]);
    assert_eq!(image.data("b"), b"shared");
    assert_eq!(image.at("b").expect("there").metadata.mode, 0o644, "a link brings no metadata");
    assert_eq!(image.at("b").expect("there").links, 1);
}

#[test]
fn replacing_one_name_of_a_file_leaves_its_other_names_alone() {
    let lower = Archive::new().file("a", b"old").hardlink("b", "a").hardlink("c", "./b");
    let image = unpacked(&[lower, Archive::new().file("a", b"new")]);
    assert_eq!((image.data("a"), image.data("b")), (b"new".to_vec(), b"old".to_vec()));
    assert_eq!(image.at("c").expect("there").links, 2);
}

#[test]
fn a_hard_link_to_a_symbolic_link_is_another_name_of_the_link() {
    let image = unpacked(&[Archive::new().symlink("s", "nowhere").hardlink("t", "s")]);
    let inode = image.at("t").expect("there");
    assert!(matches!(&inode.content, Content::Symlink(target) if &**target == b"nowhere"));
    assert_eq!(inode.links, 2);
}

#[test]
fn entries_below_a_symbolic_link_go_where_it_leads_inside_the_root() {
    let lower = Archive::new().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").symlink("run", "/var/run");
    let lower = lower.symlink("usr/up", "../usr/./lib");
    let upper = Archive::new()
        .file("lib/a", b"1")
        .file("run/pid", b"2")
        .file("usr/up/b", b"3")
        .file("lib/.wh.a", b"");
    let image = unpacked(&[lower.file("lib/gone", b""), upper.file("lib/.wh.gone", b"")]);
    assert_eq!(
        image.paths(),
        [
            "/lib",
            "/run",
            "/usr",
            "/usr/lib",
            "/usr/lib/a",
            "/usr/lib/b",
            "/usr/up",
            "/var",
            "/var/run",
            "/var/run/pid"
        ]
    );
}

#[test]
fn the_remembered_directory_is_forgotten_when_its_way_changes() {
    let layer = Archive::new().dir("a").symlink("l", "a").file("l/1", b"").dir("b").symlink("l", "b");
    let image = unpacked(&[layer.file("l/2", b"").file(".wh.x", b"").file("l/3", b"")]);
    assert_eq!(image.paths(), ["/a", "/a/1", "/b", "/b/2", "/b/3", "/l"]);
}

#[test]
fn missing_directories_are_made_and_a_file_in_the_way_gives_way() {
    let image =
        unpacked(&[Archive::new().file("a", b"").file("x/y/z", b""), Archive::new().file("a/b/c", b"")]);
    assert_eq!(image.paths(), ["/a", "/a/b", "/a/b/c", "/x", "/x/y", "/x/y/z"]);
    let implied = image.at("x/y").expect("there").metadata;
    assert_eq!((implied.mode, implied.uid, implied.gid), (0o755, 0, 0));
}

#[test]
fn the_root_has_the_metadata_of_its_entry() {
    let image = unpacked(&[Archive::new().raw(b'5', "./", "", 0o700, b"").file("/abs", b"")]);
    assert_eq!(image.tree.inode(Tree::ROOT).metadata.mode, 0o700);
    assert_eq!(image.paths(), ["/abs"]);
}

#[test]
fn space_of_replaced_files_is_given_back() {
    let big = vec![1; 100_000];
    let mut image = unpacked(&[Archive::new().file("a", &big), Archive::new().file("a", &big[..50_000])]);
    let released = image.tree.take_released();
    assert_eq!(released.iter().map(|extent| extent.size).collect::<Vec<_>>(), [100_000]);
}

#[test]
fn aufs_bookkeeping_is_ignored() {
    let image = unpacked(&[Archive::new().file(".wh..wh.aufs", b"").file("x", b"")]);
    assert_eq!(image.paths(), ["/x"]);
}
