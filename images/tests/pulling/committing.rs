//! New layers and new images from tar streams.

use std::io::{self, Read};

use images::commit::{CommitError, CommitOptions, LayerCompression};
use images::{Compression, Digest, Image, Platform, Silent, history, rootfs};

use crate::fake::Registry;
use crate::fixture::{Fixture, Fresh, tar_of};

fn base() -> (Fresh, Image) {
    let fresh = Fresh::new();
    let registry = Registry::start(Fixture::new(&["lower"]).content);
    let image = fresh.pull(&registry.image("base")).unwrap();
    (fresh, image)
}

fn options(changes: &[&str]) -> CommitOptions {
    CommitOptions {
        changes: changes.iter().map(|change| change.parse().unwrap()).collect(),
        author: Some("A <a@b>".into()),
        message: Some("what changed".into()),
        created_by: Some("sh".into()),
        ..CommitOptions::default()
    }
}

#[test]
fn a_commit_adds_one_layer_with_its_history() {
    let (fresh, base) = base();
    let tar = tar_of("upper");
    for (compression, kind) in
        [(LayerCompression::Gzip, Compression::Gzip), (LayerCompression::Zstd, Compression::Zstd)]
    {
        let options = CommitOptions { compression, ..options(&["CMD [\"/new\"]", "ENV B=c"]) };
        let name = "mine:1".parse().unwrap();
        let image = fresh.store.commit(&base, &mut &*tar, Some(&name), &options).unwrap();
        assert_eq!(image.name, "docker.io/library/mine:1");
        assert_eq!(image.layers().len(), 2);
        assert_eq!(image.layers()[0].digest, base.layers()[0].digest);
        let top = &image.layers()[1];
        assert_eq!((top.compression, &top.diff_id.0), (kind, &Digest::of(&tar)));
        assert_eq!(image.process().cmd().clone().unwrap(), ["/new"]);
        assert_eq!(image.process().env().clone().unwrap(), ["A=b", "B=c"]);
        let step = history::of(&image).remove(0);
        assert_eq!(step.comment.as_deref(), Some("what changed"));
        assert_eq!(step.created_by.as_deref(), Some("sh"));
        assert_eq!(step.layer.unwrap().digest, top.digest);
        assert!(rootfs::ensure_rootfs(&fresh.store, &image, &Silent).unwrap().is_file());
        fresh.store.remove(&image.name).unwrap();
    }
}

#[test]
fn a_commit_without_a_name_is_found_by_its_id() {
    let (fresh, base) = base();
    let image = fresh.store.commit(&base, &mut &*tar_of("x"), None, &options(&[])).unwrap();
    assert_eq!(image.name, format!("docker.io/library/sha256:{}", image.config_digest.hex()));
    let found = fresh.store.image(image.config_digest.short()).unwrap();
    assert_eq!(found.manifest_digest, image.manifest_digest);
}

/// Breaks after some bytes.
struct Broken(usize);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.0);
        self.0 -= count;
        if count == 0 { Err(io::Error::other("the guest is gone")) } else { Ok(count) }
    }
}

#[test]
fn a_stream_that_breaks_makes_no_image() {
    let (fresh, base) = base();
    let blobs = fresh.blobs().len();
    let error = fresh.store.commit(&base, &mut Broken(300_000), None, &options(&[])).unwrap_err();
    assert!(matches!(error, CommitError::Read(_)));
    assert_eq!((fresh.store.images().unwrap().len(), fresh.blobs().len()), (1, blobs));
    let partial = fresh.store.root().join("blobs/partial");
    assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0);
}

#[test]
fn a_directory_has_nothing_to_commit_to() {
    let fresh = Fresh::new();
    let root = tempfile::tempdir().unwrap();
    let image = fresh.pull(&format!("dir:{}", root.path().display())).unwrap();
    let error = fresh.store.commit(&image, &mut io::empty(), None, &options(&[])).unwrap_err();
    assert!(matches!(error, CommitError::NoLayers(_)));
}

#[test]
fn an_archive_becomes_an_image_of_one_layer() {
    let fresh = Fresh::new();
    let tar = tar_of("content");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &tar).unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    for (number, bytes) in
        [tar.clone(), gzip.finish().unwrap(), zstd::encode_all(&*tar, 1).unwrap()].into_iter().enumerate()
    {
        let name = format!("imported:{number}").parse().unwrap();
        let options = options(&["ENTRYPOINT [\"/file\"]"]);
        let image = fresh.store.import(&mut &*bytes, Some(&name), &platform, &options).unwrap();
        assert_eq!(image.layers()[0].diff_id.0, Digest::of(&tar));
        assert_eq!(image.process().entrypoint().clone().unwrap(), ["/file"]);
        assert_eq!(image.config.architecture().to_string(), "amd64");
        assert_eq!(image.config.author().as_deref(), Some("A <a@b>"));
    }
}

#[test]
fn what_is_no_archive_is_not_imported() {
    let fresh = Fresh::new();
    let platform = Platform::host();
    let tar = tar_of(&"long ".repeat(1000));
    let gzip_head = [&[0x1f, 0x8b][..], b"no gzip at all"].concat();
    for bytes in [b"text".repeat(200), tar[..tar.len() / 2].to_vec(), gzip_head] {
        assert!(fresh.store.import(&mut &*bytes, None, &platform, &options(&[])).is_err());
        assert!(fresh.store.images().unwrap().is_empty());
    }
}

#[test]
fn a_digest_cannot_be_the_name_of_a_new_image() {
    let (fresh, base) = base();
    let name = format!("x@{}", Digest::of(b"")).parse().unwrap();
    assert!(fresh.store.commit(&base, &mut &*tar_of("x"), Some(&name), &options(&[])).is_err());
    assert_eq!(fresh.store.images().unwrap().len(), 1);
}
