//! `oci:`, `oci-archive:`, `docker-archive:` and `dir:`, also damaged ones.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use images::{Contents, Digest};
use serde_json::json;

use crate::fixture::{Fixture, Fresh, Packing, descriptor, noise, tar_of};

/// Writes `fixtures` as a layout, each under its tag.
fn layout(dir: &Path, fixtures: &[(Option<&str>, &Fixture)]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut entries = Vec::new();
    for (tag, fixture) in fixtures {
        let manifests = fixture.content.manifests.values().map(|(_, bytes)| bytes);
        for bytes in fixture.content.blobs.values().chain(manifests) {
            std::fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        }
        let (media_type, top) = &fixture.content.manifests["latest"];
        let mut entry = descriptor(media_type, top);
        if let Some(tag) = tag {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        entries.push(entry);
    }
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

fn tar_up(dir: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", dir).unwrap();
    tar.into_inner().unwrap()
}

fn write(fresh: &Fresh, name: &str, bytes: &[u8]) -> PathBuf {
    let path = fresh.dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive as `docker save` writes it; `links` puts the second layer behind a symbolic link, as old versions do.
fn docker_archive(tags: &[&str], layers: &[Vec<u8>], diff_ids: &[Vec<u8>], links: bool) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut paths = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        paths.push(format!("{number}/layer.tar"));
        if links && number == 1 {
            add("shared/layer.tar", layer);
        } else {
            add(&paths[number], layer);
        }
    }
    add("config.json", &config);
    add(
        "manifest.json",
        json!([{"Config": "config.json", "RepoTags": tags, "Layers": paths}]).to_string().as_bytes(),
    );
    if links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "1/layer.tar", "../shared/layer.tar").unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_layout_is_imported_as_directory_and_as_archive() {
    let fresh = Fresh::new();
    let fixture = Fixture::new(&["a", "b"]);
    let dir = fresh.dir.path().join("layout");
    layout(&dir, &[(Some("v1"), &fixture)]);
    let file = write(&fresh, "layout.tar", &tar_up(&dir));
    let zipped = write(&fresh, "layout.tar.gz", &gzip(&tar_up(&dir)));
    for name in [
        format!("oci:{}", dir.display()),
        format!("oci:{}:v1", dir.display()),
        format!("oci-archive:{}", file.display()),
        format!("oci-archive:{}:v1", zipped.display()),
    ] {
        let image = fresh.pull(&name).unwrap();
        assert_eq!(image.name, name);
        assert_eq!(image.manifest_digest, Digest::of(&fixture.manifest));
        assert_eq!(std::fs::read(image.layers()[1].path()).unwrap(), fixture.layers[1]);
    }
    assert_eq!(fresh.store.images().unwrap().len(), 4);
    let partial = fresh.store.root().join("blobs/partial");
    assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0);
}

#[test]
fn one_of_several_images_has_to_be_named() {
    let fresh = Fresh::new();
    let (one, two) = (Fixture::new(&["1"]), Fixture::new(&["2"]));
    let dir = fresh.dir.path().join("layout");
    layout(&dir, &[(Some("one"), &one), (Some("two"), &two)]);
    for wrong in ["", ":three"] {
        let error = fresh.refused(&format!("oci:{}{wrong}", dir.display()));
        assert!(error.contains("one, two"), "{error}");
    }
    let image = fresh.pull(&format!("oci:{}:two", dir.display())).unwrap();
    assert_eq!(image.manifest_digest, Digest::of(&two.manifest));
}

#[test]
fn the_platform_of_a_layout_is_selected() {
    let fresh = Fresh::new();
    let amd = Fixture::of("amd64", &[(tar_of("amd"), Packing::Zstd)]);
    let arm = Fixture::of("arm64", &[(tar_of("arm"), Packing::Zstd)]);
    let dir = fresh.dir.path().join("layout");
    layout(&dir, &[(None, &Fixture::index(&[("arm64", arm), ("amd64", amd.clone())]))]);
    let image = fresh.pull(&format!("oci:{}", dir.display())).unwrap();
    assert_eq!(image.manifest_digest, Digest::of(&amd.manifest));
}

#[test]
fn damaged_layouts_are_refused() {
    let fixture = Fixture::large(1 << 16);
    let blob = format!("blobs/sha256/{}", fixture.layer_digest().hex());
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 5] = [
        ("digest", |blob| {
            std::fs::write(blob, noise(1 << 16).into_iter().rev().collect::<Vec<_>>()).unwrap()
        }),
        ("65536", |blob| std::fs::write(blob, noise(100)).unwrap()),
        ("65536", |blob| std::fs::write(blob, noise(1 << 17)).unwrap()),
        ("cannot read", |blob| std::fs::remove_file(blob).unwrap()),
        ("not a regular file", |blob| {
            std::fs::remove_file(blob).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, blob, rustix::fs::Mode::RUSR).unwrap();
        }),
    ];
    for (expected, damage) in cases {
        let fresh = Fresh::new();
        let dir = fresh.dir.path().join("layout");
        layout(&dir, &[(None, &fixture)]);
        damage(&dir.join(&blob));
        let error = fresh.refused(&format!("oci:{}", dir.display()));
        assert!(error.contains(expected), "{error}");
        assert!(!fresh.blobs().contains(&fixture.layer_digest().hex().to_owned()));
    }
}

#[test]
fn docker_archives_are_imported() {
    let layers = [tar_of("a"), tar_of("b")];
    let zipped: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    for (archive, compressed) in [
        (docker_archive(&["busybox:1"], &layers, &layers, false), false),
        (docker_archive(&["busybox:1"], &layers, &layers, true), false),
        (docker_archive(&["busybox:1"], &zipped, &layers, false), true),
        (gzip(&docker_archive(&["busybox:1"], &layers, &layers, true)), false),
        (zstd::encode_all(&docker_archive(&[], &layers, &layers, false)[..], 1).unwrap(), false),
    ] {
        let fresh = Fresh::new();
        let path = write(&fresh, "image.tar", &archive);
        let image = fresh.pull(&format!("docker-archive:{}", path.display())).unwrap();
        let stored = if compressed { &zipped[1] } else { &layers[1] };
        assert_eq!(std::fs::read(image.layers()[1].path()).unwrap(), *stored);
        assert_eq!(image.layers()[1].diff_id.0, Digest::of(&layers[1]));
    }
}

#[test]
fn an_image_of_a_docker_archive_is_named_by_its_tag() {
    let fresh = Fresh::new();
    let layers = [tar_of("a")];
    let path = write(&fresh, "image.tar", &docker_archive(&["busybox:1"], &layers, &layers, false));
    fresh.pull(&format!("docker-archive:{}:busybox:1", path.display())).unwrap();
    let fresh = Fresh::new();
    let error =
        fresh.refused(&format!("docker-archive:{}:busybox:2", path.with_file_name("image.tar").display()));
    assert!(error.contains("image.tar"), "{error}");
}

#[test]
fn damaged_docker_archives_are_refused() {
    let (layers, other) = ([noise(1 << 16)], [tar_of("other")]);
    let whole = docker_archive(&["x:1"], &layers, &layers, false);
    let lie = docker_archive(&["x:1"], &layers, &other, false);
    for (bytes, expected) in [
        (&whole[..40_000], "not a whole tar archive"),
        (&b"this is no archive at all"[..], "not a whole tar archive"),
        (&tar_of("x")[..], "manifest.json"),
        (&lie[..], "digest"),
        (&gzip(&whole)[..30_000], "not a whole tar archive"),
        (b"", "manifest.json"),
    ] {
        let fresh = Fresh::new();
        let path = write(&fresh, "image.tar", bytes);
        let error = fresh.refused(&format!("docker-archive:{}", path.display()));
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("image.tar") || error.contains("sha256"), "{error}");
    }
    let fresh = Fresh::new();
    assert!(fresh.refused("docker-archive:/nonexistent/x.tar").contains("/nonexistent/x.tar"));
}

#[test]
fn a_directory_is_an_image_without_layers() {
    let fresh = Fresh::new();
    let root = fresh.dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let image = fresh.pull(&format!("dir:{}", root.display())).unwrap();
    assert!(matches!(&image.contents, Contents::Directory(path) if *path == root));
    assert!(image.layers().is_empty() && image.process().cmd().is_none());
    assert!(fresh.store.images().unwrap().is_empty());
    let error = fresh.refused("dir:/nonexistent/root");
    assert!(error.contains("/nonexistent/root"), "{error}");
}
