//! Tags, history, and archives that hold several images; hostile archives too.

use std::path::Path;

use images::pull::LoadFrom;
use images::save::ArchiveKind;
use images::{Digest, Image, PullError, Silent, history};
use serde_json::{Value, json};

use crate::fake::Registry;
use crate::fixture::{Fixture, Fresh};

/// A store with two images that share their lowest layer, and the registry they came from.
fn two() -> (Fresh, [String; 2]) {
    let fresh = Fresh::new();
    let fixtures = [Fixture::new(&["base", "one"]), Fixture::new(&["base", "two"])];
    let names = ["one:1", "two:2"].map(str::to_owned);
    for (fixture, name) in fixtures.into_iter().zip(&names) {
        let registry = Registry::start(fixture.content);
        let pulled = registry.image("x");
        fresh.pull(&pulled).unwrap();
        fresh.store.tag(&pulled, &name.parse().unwrap()).unwrap();
        fresh.store.remove(&pulled).unwrap();
    }
    (fresh, names)
}

fn saved(fresh: &Fresh, names: &[String], kind: ArchiveKind) -> Vec<u8> {
    let mut archive = Vec::new();
    fresh.store.save(names, kind, &mut archive).unwrap();
    archive
}

fn load(fresh: &Fresh, archive: &[u8]) -> Result<Vec<Image>, PullError> {
    fresh.store.load_archive(&LoadFrom::Stream("stdin"), &mut &*archive, &fresh.options, &Silent)
}

/// The members of an archive, in order.
fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(archive);
    let member = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        (name, bytes)
    };
    tar.entries().unwrap().map(member).collect()
}

fn tar_up(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, &**bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// The archive with the member `name` replaced by what `change` makes of its JSON.
fn changed(archive: &[u8], name: &str, change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut members = members(archive);
    let member = members.iter_mut().find(|member| member.0 == name).unwrap();
    let mut value = serde_json::from_slice(&member.1).unwrap();
    change(&mut value);
    member.1 = value.to_string().into_bytes();
    tar_up(&members)
}

#[test]
fn several_images_go_through_both_kinds_of_archive_unchanged() {
    let (fresh, names) = two();
    let before = fresh.store.images().unwrap();
    for kind in [ArchiveKind::Docker, ArchiveKind::Oci] {
        let archive = saved(&fresh, &names, kind);
        assert_eq!(archive, saved(&fresh, &names, kind), "the same images give the same archive");
        let blobs = members(&archive).iter().filter(|(name, _)| name.starts_with("blobs/")).count();
        assert_eq!(blobs, 7, "three layers, two configurations, two manifests");
        let other = Fresh::new();
        let loaded = load(&other, &archive).unwrap();
        assert_eq!(
            loaded.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(),
            ["docker.io/library/one:1", "docker.io/library/two:2"]
        );
        let ids = |images: Vec<images::ImageSummary>| -> Vec<_> {
            images.into_iter().map(|image| (image.name, image.id, image.manifest)).collect()
        };
        assert_eq!(ids(other.store.images().unwrap()), ids(before.clone()));
    }
}

#[test]
fn a_docker_archive_is_read_by_its_own_list_too() {
    let (fresh, names) = two();
    let archive = saved(&fresh, &names, ArchiveKind::Docker);
    let mut old = members(&archive);
    old.retain(|(name, _)| name != "index.json" && name != "oci-layout");
    let other = Fresh::new();
    let loaded = load(&other, &tar_up(&old)).unwrap();
    let ids: Vec<_> = loaded.iter().map(|image| image.config_digest.clone()).collect();
    assert_eq!(ids, names.map(|name| fresh.store.image(&name).unwrap().config_digest));
}

#[test]
fn two_names_of_one_image_are_one_image_in_an_archive() {
    let (fresh, [one, _]) = two();
    fresh.store.tag(&one, &"127.0.0.1:5000/three:3".parse().unwrap()).unwrap();
    let names = [one, "127.0.0.1:5000/three:3".to_owned()];
    let archive = saved(&fresh, &names, ArchiveKind::Docker);
    let (_, list) = members(&archive).pop().unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["RepoTags"], json!(["one:1", "127.0.0.1:5000/three:3"]));
    assert_eq!(load(&Fresh::new(), &archive).unwrap().len(), 2);
}

#[test]
fn an_image_without_a_name_is_loaded_and_saved_by_its_id() {
    let (fresh, [one, _]) = two();
    let archive = saved(&fresh, &[one], ArchiveKind::Oci);
    let nameless = changed(&archive, "index.json", |index| {
        index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    });
    let other = Fresh::new();
    let loaded = load(&other, &nameless).unwrap();
    let id = loaded[0].config_digest.clone();
    assert_eq!(loaded[0].name, format!("docker.io/library/sha256:{}", id.hex()));
    let again = other.store.image(&id.to_string()).unwrap();
    assert_eq!(again.config_digest, id);
    let saved = saved(&other, &[id.short().to_owned()], ArchiveKind::Docker);
    let list: Value = serde_json::from_slice(&members(&saved).pop().unwrap().1).unwrap();
    assert_eq!(list[0]["RepoTags"], json!([]));
}

#[test]
fn an_archive_is_written_whole_or_not_at_all() {
    let (fresh, [one, two]) = two();
    let path = fresh.dir.path().join("out.tar");
    fresh.store.save_file(&[one.clone(), two], ArchiveKind::Docker, &path).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(fresh.store.save_file(&[one.clone(), "absent".into()], ArchiveKind::Docker, &path).is_err());
    let layer = fresh.store.image(&one).unwrap().layers()[1].path().to_owned();
    std::fs::write(layer, "short").unwrap();
    assert!(fresh.store.save_file(&[one], ArchiveKind::Docker, &path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let left = std::fs::read_dir(fresh.dir.path()).unwrap().count();
    assert_eq!(left, 2, "the store and the archive");
}

#[test]
fn hostile_archives_are_refused_and_leave_no_image() {
    let (fresh, names) = two();
    let archive = saved(&fresh, &names, ArchiveKind::Oci);
    let docker: Vec<_> = members(&saved(&fresh, &names, ArchiveKind::Docker))
        .into_iter()
        .filter(|(name, _)| name != "index.json")
        .collect();
    let docker = tar_up(&docker);
    let named = |name: &'static str| {
        move |index: &mut Value| {
            index["manifests"][0]["annotations"] = json!({"io.containerd.image.name": name});
        }
    };
    let digest_as_name = format!("x@{}", Digest::of(b""));
    let cases = [
        ("names an image wrongly", changed(&archive, "index.json", named("../../etc/passwd"))),
        ("names an image wrongly", changed(&archive, "index.json", named("a/UPPER"))),
        (
            "as a name",
            changed(&docker, "manifest.json", |list| list[0]["RepoTags"] = json!([digest_as_name])),
        ),
        (
            "names an image wrongly",
            changed(&docker, "manifest.json", |list| list[0]["RepoTags"] = json!(["a b"])),
        ),
        ("missing", changed(&docker, "manifest.json", |list| list[0]["Layers"] = json!(["../../x", "y"]))),
        (
            "missing or too large",
            changed(&docker, "manifest.json", |list| list[0]["Config"] = json!("/etc/passwd")),
        ),
        ("malformed", changed(&docker, "manifest.json", |list| *list = json!({"a": 1}))),
        (
            "more than 1000",
            changed(&docker, "manifest.json", |list| {
                let tags: Vec<_> = (0..1001).map(|number| format!("bomb:{number}")).collect();
                list[0]["RepoTags"] = json!(tags);
            }),
        ),
        (
            "more than 1000",
            changed(&archive, "index.json", |index| {
                index["manifests"] = json!(vec![index["manifests"][0].clone(); 1001]);
            }),
        ),
        (
            "no image for",
            changed(&archive, "index.json", |index| {
                for entry in index["manifests"].as_array_mut().unwrap() {
                    entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
                }
            }),
        ),
        ("no manifest.json", tar_up(&[("x".into(), vec![1])])),
        ("not a whole tar", b"this is no tar archive, but it is long enough".repeat(30)),
        ("not a whole tar", archive[..archive.len() / 2].to_vec()),
    ];
    for (reason, archive) in cases {
        let other = Fresh::new();
        let error = load(&other, &archive).expect_err(reason).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(other.store.images().unwrap().is_empty(), "{reason}");
        let partial = other.store.root().join("blobs/partial");
        assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0, "{reason}");
    }
}

#[test]
fn a_blob_that_lies_about_its_content_is_refused() {
    let (fresh, [one, _]) = two();
    let archive = saved(&fresh, std::slice::from_ref(&one), ArchiveKind::Docker);
    let layer = fresh.store.image(&one).unwrap().layers()[1].digest.hex().to_owned();
    let mut lying = members(&archive);
    lying.iter_mut().find(|(name, _)| name.ends_with(&layer)).unwrap().1[20] ^= 1;
    let other = Fresh::new();
    assert!(load(&other, &tar_up(&lying)).unwrap_err().to_string().contains("digest"));
    assert!(other.store.images().unwrap().is_empty());
}

#[test]
fn a_layout_directory_is_loaded_too() {
    let (fresh, names) = two();
    let dir = fresh.dir.path().join("layout");
    tar::Archive::new(&*saved(&fresh, &names, ArchiveKind::Oci)).unpack(&dir).unwrap();
    let other = Fresh::new();
    let load = |path: &Path| {
        other.store.load_archive(&LoadFrom::Path(path), &mut std::io::empty(), &other.options, &Silent)
    };
    assert_eq!(load(&dir).unwrap().len(), 2);
    assert!(load(&fresh.dir.path().join("absent")).is_err());
}

#[test]
fn a_tag_is_one_more_name_and_keeps_the_image_alive() {
    let (fresh, [one, two]) = two();
    let id = fresh.store.image(&one).unwrap().config_digest.clone();
    fresh.store.tag(&id.hex()[..12], &two.parse().unwrap()).unwrap();
    assert_eq!(fresh.store.image(id.short()).unwrap().config_digest, id, "an ID with two names");
    assert!(fresh.store.remove(id.short()).is_err(), "which of the two?");
    fresh.store.remove(&one).unwrap();
    assert_eq!(fresh.store.image(&two).unwrap().config_digest, id);
    let digest = format!("x@{id}").parse().unwrap();
    assert!(fresh.store.tag(&two, &digest).unwrap_err().to_string().contains("only a tag"));
    assert!(fresh.store.tag("absent", &"y".parse().unwrap()).is_err());
}

#[test]
fn layers_without_history_are_listed_all_the_same() {
    let (fresh, [one, _]) = two();
    let image = fresh.store.image(&one).unwrap();
    let steps = history::of(&image);
    let layers: Vec<_> = steps.iter().map(|step| &step.layer.as_ref().unwrap().digest).collect();
    assert_eq!(layers, [&image.layers()[1].digest, &image.layers()[0].digest]);
}
