//! What changed, on directories of the test host.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::changes;

/// What the list of changes says.
fn changed(base: &tempfile::TempDir, ignored: &[&str]) -> Vec<String> {
    let ignored: Vec<String> = ignored.iter().map(|path| (*path).to_owned()).collect();
    let mut out = Vec::new();
    changes::list(&base.path().join("upper"), &base.path().join("lower"), &ignored, &mut out).unwrap();
    let records = out.split(|byte| *byte == 0).filter(|record| !record.is_empty());
    records.map(|record| String::from_utf8(record.to_vec()).unwrap()).collect()
}

fn layers(files: &[(&str, &str)]) -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = base.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    base
}

/// What the overlay does when a file is opened for writing: everything but the content stays as it was.
fn copied_up(base: &tempfile::TempDir, name: &str) {
    let time = fs::metadata(base.path().join("lower").join(name)).unwrap().modified().unwrap();
    let upper = fs::File::options().write(true).open(base.path().join("upper").join(name)).unwrap();
    upper.set_modified(time).unwrap();
}

#[test]
fn changes_are_listed_with_the_directories_around_them_and_nothing_else() {
    let base = layers(&[
        ("lower/etc/passwd", "old"),
        ("lower/etc/hosts", "image's"),
        ("lower/etc/same", "same"),
        ("lower/etc/sneaky", "1234"),
        ("lower/opt/untouched", "x"),
        ("lower/was-file", "x"),
        ("lower/was-removed/with/all", "x"),
        ("upper/etc/passwd", "newer"),
        ("upper/etc/hosts", "ours"),
        ("upper/etc/same", "same"),
        ("upper/etc/sneaky", "4321"),
        ("upper/opt/untouched", "x"),
        ("upper/srv/new/file", "x"),
        ("upper/was-file/now", "x"),
        ("upper/mnt/data/below", "x"),
        ("upper/proc/x", "x"),
    ]);
    fs::create_dir(base.path().join("lower/mnt")).unwrap();
    for name in ["etc/same", "etc/sneaky", "opt/untouched"] {
        copied_up(&base, name);
    }
    whiteout(&base, "was-removed");
    let expected = [
        "C/etc",
        "C/etc/passwd",
        "C/etc/sneaky",
        "A/srv",
        "A/srv/new",
        "A/srv/new/file",
        "C/was-file",
        "A/was-file/now",
        "D/was-removed",
    ];
    assert_eq!(changed(&base, &["/mnt/data"]), expected);
    fs::set_permissions(base.path().join("upper/opt"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(changed(&base, &["/mnt/data"]).contains(&"C/opt".to_owned()));
    assert!(changed(&base, &[]).contains(&"A/mnt/data/below".to_owned()));
}

/// What the overlay leaves in place of a removed file.
fn whiteout(base: &tempfile::TempDir, name: &str) {
    let path = base.path().join("upper").join(name);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
}

#[test]
fn a_layer_has_exactly_the_changes() {
    let base = layers(&[
        ("lower/etc/passwd", "old"),
        ("lower/keep/x", "x"),
        ("upper/etc/passwd", "newer"),
        ("upper/keep/y", "y"),
    ]);
    whiteout(&base, "keep/x");
    whiteout(&base, "never-there");
    let mut out = Vec::new();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    changes::archive(&upper, &lower, &[], &mut out).unwrap();
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(&out[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        found.insert(entry.path().unwrap().to_str().unwrap().to_owned(), content);
    }
    let expected =
        [("etc/", ""), ("etc/passwd", "newer"), ("keep/", ""), ("keep/.wh.x", ""), ("keep/y", "y")];
    assert_eq!(found, expected.map(|(name, content)| (name.to_owned(), content.to_owned())).into());
}
