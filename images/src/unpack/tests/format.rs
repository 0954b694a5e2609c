//! The dialects of tar: long names, PAX records, sparse files, odd numbers, old archives.

use super::archive::{Archive, Unpacked, unpack_with, unpacked};
use crate::erofs::{Content, Device, Timestamp};
use crate::unpack::{Limits, UnpackError};

#[test]
fn owners_modes_and_times_are_kept() {
    let mtime = [("mtime", &b"-5.25"[..]), ("uid", b"4294967294"), ("gid", b"70000")];
    let image = unpacked(&[Archive::new().pax(&mtime).raw(b'0', "f", "", 0o106_755, b"x")]);
    let meta = image.at("f").expect("there").metadata;
    assert_eq!((meta.mode, meta.uid, meta.gid), (0o6755, 4_294_967_294, 70_000));
    assert_eq!(meta.mtime, Timestamp { seconds: -6, nanos: 750_000_000 });
}

#[test]
fn long_names_come_in_three_ways() {
    let long = "n".repeat(200);
    let gnu = Archive::new()
        .raw(b'L', "././@LongLink", "", 0, format!("{long}1\0").as_bytes())
        .file("cut", b"1")
        .raw(b'K', "././@LongLink", "", 0, format!("{long}t\0").as_bytes())
        .symlink("link", "cut")
        .pax(&[("path", format!("{long}2").as_bytes())])
        .file("cut", b"2");
    let mut header = tar::Header::new_ustar();
    header.as_ustar_mut().expect("ustar").prefix[..3].copy_from_slice(b"a/b");
    header.as_old_mut().name[..1].copy_from_slice(b"c");
    header.set_mode(0);
    header.set_size(0);
    let image = unpacked(&[gnu.header(header)]);
    assert_eq!(image.data(&format!("{long}1")), b"1");
    assert_eq!(image.data(&format!("{long}2")), b"2");
    assert!(image.has("a/b/c"));
    let target = format!("{long}t").into_bytes();
    assert!(matches!(&image.at("link").expect("there").content, Content::Symlink(to) if **to == *target));
}

#[test]
fn names_need_not_be_text() {
    let image = unpacked(&[Archive::new().pax(&[("path", b"d/\xff\n\xc3")]).file("x", b"1")]);
    assert_eq!(image.paths(), ["/d", "/d/\\xff\\n\\xc3"]);
}

#[test]
fn device_nodes_and_pipes_are_kept() {
    let device = |flag| {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[0] = flag;
        header.as_old_mut().linkflag = [flag];
        header.set_mode(0o600);
        header.set_size(0);
        header.set_device_major(7).expect("ustar");
        header.set_device_minor(300).expect("ustar");
        header
    };
    let image =
        unpacked(&[Archive::new().header(device(b'3')).header(device(b'4')).raw(b'6', "p", "", 0o600, b"")]);
    let expected = Device { major: 7, minor: 300 };
    assert!(
        matches!(image.at("3").expect("there").content, Content::CharDevice(device) if device == expected)
    );
    assert!(
        matches!(image.at("4").expect("there").content, Content::BlockDevice(device) if device == expected)
    );
    assert!(matches!(image.at("p").expect("there").content, Content::Fifo));
}

#[test]
fn attributes_are_kept_byte_for_byte() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let image = unpacked(&[Archive::new()
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.empty", b"")])
        .file("f", b"")]);
    let xattrs: Vec<_> =
        image.at("f").expect("there").xattrs.iter().map(|x| (x.name(), x.value().to_vec())).collect();
    let expected = [(b"user.empty".to_vec(), vec![]), (b"security.capability".to_vec(), capability.to_vec())];
    assert_eq!(xattrs, expected);
}

#[test]
fn extension_headers_apply_to_one_entry_only_and_global_ones_to_none() {
    let archive = Archive::new().raw(b'g', "g", "", 0, b"13 path=never\n").pax(&[("uid", b"5")]);
    let image = unpacked(&[archive.file("a", b"").file("b", b"")]);
    assert_eq!(image.paths(), ["/a", "/b"]);
    assert_eq!(image.at("a").expect("there").metadata.uid, 5);
    assert_eq!(image.at("b").expect("there").metadata.uid, 1000);
}

#[test]
fn an_old_archive_marks_directories_by_a_slash() {
    let image = unpacked(&[Archive::new().raw(0, "d/", "", 0o755, b"").raw(0, "d/f", "", 0o644, b"x")]);
    assert!(image.at("d").expect("there").directory().is_some());
    assert_eq!(image.data("d/f"), b"x");
}

#[test]
fn links_have_no_data_whatever_their_size_field_says() {
    let mut link = tar::Header::new_ustar();
    link.as_old_mut().name[0] = b'l';
    link.as_old_mut().linkname[0] = b'f';
    link.as_old_mut().linkflag = *b"1";
    link.set_mode(0);
    link.set_size(4096);
    let image = unpacked(&[Archive::new().file("f", b"x").header(link).file("g", b"y")]);
    assert_eq!(image.paths(), ["/f", "/g", "/l"]);
}

#[test]
fn an_archive_may_end_without_zeros_and_have_anything_behind_them() {
    let archive = Archive::new().file("f", b"x");
    let bare = archive.clone().0;
    let mut trailing = archive.end();
    trailing.extend_from_slice(&[0xff; 5000]);
    for layer in [bare, trailing, Vec::new()] {
        unpack_with(&[layer], &Limits::default()).expect("valid");
    }
}

/// The content that every sparse format below describes: 3 bytes at 1 MiB, 2 at the end of 5 MiB.
fn assert_sparse(image: &Unpacked, path: &str) {
    let mut expected = vec![0; 5 << 20];
    expected[1 << 20..(1 << 20) + 3].copy_from_slice(b"one");
    expected[(5 << 20) - 2..].copy_from_slice(b"2!");
    assert!(image.data(path) == expected, "{path} differs");
    assert!(image.has("after"), "the entry behind {path} was lost");
}

#[test]
fn gnu_sparse_files_are_expanded() {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"hole");
    header.as_old_mut().linkflag = *b"S";
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(5);
    let gnu = header.as_gnu_mut().expect("gnu");
    gnu.set_real_size(5 << 20);
    gnu.set_is_extended(true);
    for (at, record) in gnu.sparse.iter_mut().enumerate() {
        record.set_offset(if at == 0 { 1 << 20 } else { (1 << 20) + 3 });
        record.set_length(if at == 0 { 3 } else { 0 });
    }
    let mut extension = tar::GnuExtSparseHeader::new();
    extension.sparse_mut()[0].set_offset((5 << 20) - 2);
    extension.sparse_mut()[0].set_length(2);
    let mut archive = Archive::new().header(header);
    archive.0.extend_from_slice(extension.as_bytes());
    assert_sparse(&unpacked(&[archive.data(b"one2!").file("after", b"")]), "hole");
}

#[test]
fn pax_sparse_files_of_all_versions_are_expanded() {
    let (at, end) = (1 << 20, (5 << 20) - 2);
    let size = (5 << 20).to_string();
    let (at_text, end_text) = (at.to_string(), end.to_string());
    let map = format!("{at},3,{end},2");
    let v0_0 = Archive::new().pax(&[
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", at_text.as_bytes()),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", end_text.as_bytes()),
        ("GNU.sparse.numbytes", b"2"),
    ]);
    assert_sparse(&unpacked(&[v0_0.file("v00", b"one2!").file("after", b"")]), "v00");
    let v0_1 = Archive::new().pax(&[
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.map", map.as_bytes()),
        ("GNU.sparse.name", b"v01"),
    ]);
    assert_sparse(&unpacked(&[v0_1.file("GNUSparseFile.1/v01", b"one2!").file("after", b"")]), "v01");
    let mut data = format!("2\n{at}\n3\n{end}\n2\n").into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(b"one2!");
    let v1_0 = Archive::new().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"v10"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ]);
    assert_sparse(&unpacked(&[v1_0.file("GNUSparseFile.1/v10", &data).file("after", b"")]), "v10");
}

#[test]
fn a_layer_with_another_diff_id_is_refused() {
    use crate::digest::{DiffId, Digest};
    use crate::erofs::DataWriter;
    let layer = crate::unpack::Layer {
        name: "sha256:blob".to_owned(),
        diff_id: DiffId(Digest::of(b"something else")),
        source: Box::new(std::io::Cursor::new(Archive::new().file("f", b"x").end())),
    };
    let mut image = Vec::new();
    let mut data = DataWriter::new(&mut image);
    let result = crate::unpack::unpack(vec![layer], &mut data, &Limits::default(), &mut |_| {});
    assert!(matches!(result, Err(UnpackError::DiffId { layer, .. }) if layer == "sha256:blob"));
}
