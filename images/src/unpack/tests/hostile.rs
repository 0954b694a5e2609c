//! What an attacker's layer tries. Each attempt is an error that says so; nothing is ever made outside the tree.

use std::error::Error;
use std::io::Write;

use proptest::prelude::*;

use super::archive::{Archive, refusal, unpack_with};
use crate::unpack::limits::MAX_DEVICES;
use crate::unpack::{EntryError, Limits, PathError, TarError, UnpackError};

#[test]
fn paths_that_climb_out_are_refused() {
    for path in ["../evil", "a/../../evil", "/../evil", "..", "a/..", "./../x"] {
        assert!(
            matches!(refusal(Archive::new().file(path, b"")), EntryError::Path(PathError::Climbs)),
            "{path}"
        );
    }
    let link = Archive::new().file("f", b"").hardlink("l", "../../etc/passwd");
    assert!(matches!(refusal(link), EntryError::Path(PathError::Climbs)));
    let pax = Archive::new().pax(&[("path", b"../evil")]).file("harmless", b"");
    assert!(matches!(refusal(pax), EntryError::Path(PathError::Climbs)));
    let sparse = Archive::new().pax(&[
        ("GNU.sparse.name", b"../x"),
        ("GNU.sparse.map", b""),
        ("GNU.sparse.size", b"1"),
    ]);
    assert!(matches!(refusal(sparse.file("harmless", b"")), EntryError::Path(PathError::Climbs)));
}

#[test]
fn links_that_climb_out_cannot_be_walked_through() {
    for target in ["../../etc", "/../etc", "x/../../.."] {
        let archive =
            Archive::new().dir("x").dir("a").symlink("a/out", target).file("a/out/../../../evil", b"");
        assert!(matches!(refusal(archive), EntryError::Path(PathError::Climbs)));
        let archive = Archive::new().dir("x").symlink("out", target).file("out/evil", b"");
        assert!(matches!(refusal(archive), EntryError::Escapes), "{target}");
        let archive = Archive::new().dir("x").symlink("out", target).file("out/.wh.etc", b"");
        assert!(matches!(refusal(archive), EntryError::Escapes), "{target}");
        let archive = Archive::new().dir("x").symlink("out", target).hardlink("l", "out/passwd");
        assert!(matches!(refusal(archive), EntryError::Escapes), "{target}");
    }
}

#[test]
fn an_absolute_link_leads_to_the_images_own_root() {
    let archive = Archive::new().symlink("out", "/etc").file("out/passwd", b"image's");
    let image = unpack_with(&[archive.end()], &Limits::default()).expect("contained");
    assert_eq!(image.paths(), ["/etc", "/etc/passwd", "/out"]);
}

#[test]
fn link_loops_and_links_that_multiply_work_are_refused() {
    let looping = Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", b"");
    assert!(matches!(refusal(looping), EntryError::Symlinks));
    // Each link runs twenty times through the one before it.
    let mut archive = Archive::new().dir("d0");
    for level in 1..8 {
        let target = format!("d{}/../", level - 1).repeat(12) + &format!("d{}", level - 1);
        archive = archive.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("d{level}"), "");
    }
    assert!(matches!(refusal(archive.file("d7/x", b"")), EntryError::Symlinks));
}

#[test]
fn whiteouts_of_nothing_nameable_are_refused() {
    for path in [".wh.", ".wh..", ".wh...", "d/.wh.."] {
        assert!(matches!(
            refusal(Archive::new().dir("d").file(path, b"")),
            EntryError::Path(PathError::Whiteout)
        ));
    }
}

#[test]
fn the_root_stays_a_directory() {
    assert!(matches!(refusal(Archive::new().symlink("./", "/tmp")), EntryError::Root));
    assert!(matches!(refusal(Archive::new().file("/", b"x")), EntryError::Root));
}

#[test]
fn hard_links_to_nothing_or_to_directories_are_refused() {
    assert!(matches!(refusal(Archive::new().hardlink("l", "missing")), EntryError::LinkTarget(_)));
    assert!(matches!(refusal(Archive::new().hardlink("l", "no/such")), EntryError::LinkTarget(_)));
    assert!(matches!(refusal(Archive::new().dir("d").hardlink("l", "d")), EntryError::LinkDirectory(_)));
    assert!(matches!(refusal(Archive::new().hardlink("l", "/")), EntryError::LinkDirectory(_)));
    // The link would replace what holds its target, or itself.
    assert!(matches!(
        refusal(Archive::new().file("d/f", b"").hardlink("d", "d/f")),
        EntryError::LinkTarget(_)
    ));
    assert!(matches!(refusal(Archive::new().file("f", b"").hardlink("f", "f")), EntryError::LinkTarget(_)));
}

#[test]
fn a_device_bomb_is_refused() {
    let mut archive = Archive::new();
    for n in 0..=MAX_DEVICES {
        archive = archive.raw(b'3', &format!("dev{n}"), "", 0o666, b"");
    }
    assert!(matches!(refusal(archive), EntryError::Devices));
}

#[test]
fn a_decompression_bomb_is_refused_with_the_limit_stated() {
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let layer = Archive::new().file("zeros", &vec![0; 4 << 20]).end();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&layer).expect("in memory");
    let bomb = encoder.finish().expect("in memory");
    assert!(bomb.len() < 20_000);
    let error = unpack_with(&[bomb], &limits).expect_err("refused");
    let source = error.source().expect("a cause").to_string();
    assert!(source.contains("1048576") && source.contains("decompression bomb"), "{source}");
    // The limit is on all layers together.
    let layer = Archive::new().file("a", &vec![1; 600 << 10]).end();
    assert!(unpack_with(std::slice::from_ref(&layer), &limits).is_ok());
    assert!(unpack_with(&[layer.clone(), layer], &limits).is_err());
    // And on all files of one layer, none of which is too large by itself.
    let files = (0..4).fold(Archive::new(), |archive, n| archive.file(&format!("f{n}"), &vec![1; 600 << 10]));
    assert!(unpack_with(&[files.end()], &limits).is_err());
}

#[test]
fn too_many_entries_are_refused_and_implied_directories_count() {
    let limits = Limits { entries: 10, ..Limits::default() };
    let files = (0..11).fold(Archive::new(), |archive, n| archive.file(&format!("f{n}"), b""));
    for archive in [files, Archive::new().file("a/b/c/d/e/f/g/h/i/j/k", b"")] {
        let result = unpack_with(&[archive.end()], &limits);
        let Err(UnpackError::Entry { source, .. }) = result else { panic!("{result:?}") };
        assert!(matches!(*source, EntryError::Entries(10)));
    }
}

#[test]
fn a_tree_that_grows_through_links_stops_at_the_depth_limit() {
    let deep = "d/".repeat(2047) + "x";
    let direct = Archive::new().pax(&[("path", deep.as_bytes())]).dir("x");
    assert!(unpack_with(&[direct.end()], &Limits::default()).is_ok());
    let deeper = Archive::new()
        .pax(&[("path", deep.as_bytes())])
        .dir("x")
        .pax(&[("linkpath", deep.as_bytes())])
        .symlink("deep", "")
        .file("deep/1/2/3", b"");
    assert!(matches!(refusal(deeper), EntryError::Depth));
}

#[test]
fn truncated_layers_are_refused_wherever_they_end() {
    let whole = Archive::new().pax(&[("mtime", b"1")]).file("f", &[7; 3000]).0;
    for len in (1..whole.len()).step_by(37).chain([512, 1024, 1536, 2048, whole.len() - 1]) {
        let result = unpack_with(&[whole[..len].to_vec()], &Limits::default());
        let Err(UnpackError::Entry { source, .. }) = result else { panic!("{len}: {result:?}") };
        assert!(matches!(*source, EntryError::Tar(TarError::Truncated)), "{len}");
    }
}

/// As umoci's `insert` leaves it where the last file is small.
#[test]
fn a_last_entry_without_padding_is_whole() {
    let whole = Archive::new().file("f", b"It works\n").0;
    let end = 512 + 9;
    unpack_with(&[whole[..end].to_vec()], &Limits::default()).unwrap();
    assert!(unpack_with(&[whole[..end - 1].to_vec()], &Limits::default()).is_err());
}

#[test]
fn what_is_no_archive_is_refused() {
    let text = b"<html>not found</html>".repeat(100);
    let result = unpack_with(&[text], &Limits::default());
    let Err(UnpackError::Entry { source, .. }) = result else { panic!("{result:?}") };
    assert!(matches!(*source, EntryError::Tar(TarError::Checksum)));
}

#[test]
fn huge_extension_headers_are_refused_before_they_are_read() {
    for (flag, size) in [(b'x', 1 << 40), (b'g', 1 << 40), (b'L', 1 << 33), (b'K', 8192)] {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().linkflag = [flag];
        header.set_mode(0);
        header.set_size(size);
        let error = refusal(Archive::new().header(header));
        assert!(matches!(error, EntryError::Tar(TarError::PaxTooLarge | TarError::NameTooLarge)), "{error}");
    }
}

#[test]
fn sparse_files_of_impossible_sizes_are_refused() {
    let sparse = |size: &str, map: &str| {
        let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        refusal(Archive::new().pax(&records).file("f", b"x"))
    };
    assert!(matches!(sparse("18446744073709551615", "0,1"), EntryError::Apparent));
    assert!(matches!(sparse("10", "10,1"), EntryError::Tar(TarError::Sparse)));
    assert!(matches!(sparse("10", "18446744073709551615,1"), EntryError::Tar(TarError::Sparse)));
    assert!(matches!(sparse("10", "0,1,0,1"), EntryError::Tar(TarError::Sparse)));
    assert!(matches!(sparse("10", "0"), EntryError::Tar(TarError::Sparse)));
}

#[test]
fn an_error_names_the_layer_and_the_entry() {
    let layer = Archive::new().file("fine", b"").file("../../etc/cron.d/x", b"").end();
    let error = unpack_with(&[layer], &Limits::default()).expect_err("refused");
    assert_eq!(error.to_string(), "layer layer: entry \"../../etc/cron.d/x\"");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Any damage to a rich archive gives a tree or an error, never a panic or a hang.
    #[test]
    fn damage_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_checksums in any::<bool>(),
    ) {
        let mut layer = Archive::new()
            .dir("d")
            .pax(&[("SCHILY.xattr.user.a", b"b"), ("mtime", b"1.5"), ("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"9")])
            .file("d/sparse", b"12345")
            .raw(b'L', "long", "", 0, b"d/long\0")
            .file("x", &[1; 600])
            .symlink("s", "d")
            .hardlink("s/h", "d/long")
            .file("d/.wh.long", b"")
            .raw(b'3', "c", "", 0o600, b"")
            .end();
        for (at, value) in &changes {
            let at = at.index(layer.len());
            layer[at] = *value;
        }
        if fix_checksums {
            for block in layer.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    let mut header = tar::Header::new_old();
                    header.as_mut_bytes().copy_from_slice(block);
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
        }
        let limits = Limits { unpacked_bytes: 1 << 20, entries: 1000 };
        let _ = unpack_with(&[layer], &limits);
    }
}
