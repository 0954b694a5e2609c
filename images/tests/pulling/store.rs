//! Names, removal, garbage collection and space.

use images::ImageSource;

use crate::fake::{Ending, Registry, Reply};
use crate::fixture::{Fixture, Fresh};

/// Two images that share a layer.
fn two() -> (Registry, Fresh, String, String) {
    let (one, other) = (Fixture::new(&["shared", "one"]), Fixture::new(&["shared", "other"]));
    let registry = Registry::with(move |request, _| match request.path.contains("/one/") {
        true => one.content.serve(request),
        false => other.content.serve(request),
    });
    let fresh = Fresh::new();
    let names = (registry.image("one:latest"), registry.image("other:latest"));
    fresh.pull(&names.0).unwrap();
    fresh.pull(&names.1).unwrap();
    (registry, fresh, names.0, names.1)
}

#[test]
fn removing_an_image_keeps_what_others_share() {
    let (_registry, fresh, one, other) = two();
    let mut names: Vec<_> = fresh.store.images().unwrap().into_iter().map(|image| image.name).collect();
    names.sort();
    assert_eq!(names, [one.clone(), other.clone()]);
    assert_eq!(fresh.blobs().len(), 7);

    let removed = fresh.store.remove(&one).unwrap();
    assert_eq!((removed.untagged, removed.collected.files), (one.clone(), 3));
    assert!(!removed.collected.deferred);
    fresh.store.image(&other).unwrap();
    assert!(fresh.store.image(&one).unwrap_err().to_string().contains(&one));

    fresh.store.remove(&other).unwrap();
    assert!(fresh.blobs().is_empty());
}

#[test]
fn an_image_in_use_keeps_its_blobs() {
    let (_registry, fresh, one, _) = two();
    let image = fresh.store.image(&one).unwrap();
    let removed = fresh.store.remove(&one).unwrap();
    assert!(removed.collected.deferred);
    assert!(image.layers().iter().all(|layer| layer.path().exists()));
    drop(image);
    assert_eq!(fresh.store.prune().unwrap().files, 3);
}

#[test]
fn root_filesystems_and_leftovers_go_with_their_image() {
    let (_registry, fresh, one, _) = two();
    let rootfs = fresh.store.rootfs_dir();
    let chain = fresh.store.image(&one).unwrap().chain_id().unwrap().0.hex().to_owned();
    let (live, stale) = (rootfs.join(format!("{chain}-v1.erofs")), rootfs.join("0123.partial"));
    std::fs::write(&live, [1; 5000]).unwrap();
    std::fs::write(&stale, [1; 5000]).unwrap();
    let usage = fresh.store.system_df().unwrap();
    assert_eq!((usage.images, usage.rootfs.count, usage.blobs.count), (2, 2, 7));
    assert!(usage.rootfs.reclaimable > 0 && usage.rootfs.reclaimable < usage.rootfs.bytes);
    assert_eq!(usage.blobs.reclaimable, 0);

    fresh.store.prune().unwrap();
    assert!(live.exists() && !stale.exists());
    fresh.store.remove(&one).unwrap();
    assert!(!live.exists());
}

#[test]
fn a_broken_pull_is_kept_until_a_prune() {
    let (_registry, fresh, one, other) = two();
    let large = Fixture::large(1 << 20);
    let layer = large.layer_digest().to_string();
    let broken = Registry::with(move |request, _| {
        let reply = large.content.serve(request);
        if request.path.ends_with(&layer) { Reply { ending: Ending::CutAfter(1000), ..reply } } else { reply }
    });
    let mut options = fresh.options.clone();
    options.registry.timing.attempts = 1;
    let source: ImageSource = broken.image("app").parse().unwrap();
    fresh.store.pull(&source, &options, &images::Silent).unwrap_err();
    assert_eq!(fresh.store.system_df().unwrap().partial.count, 1);
    fresh.store.remove(&one).unwrap();
    assert_eq!(fresh.store.system_df().unwrap().partial.count, 1);
    fresh.store.prune().unwrap();
    assert_eq!(fresh.store.system_df().unwrap().partial.count, 0);
    fresh.store.image(&other).unwrap();
}

#[test]
fn an_id_that_means_two_images_is_refused() {
    let registry = Registry::start(Fixture::new(&["x"]).content);
    let fresh = Fresh::new();
    let image = fresh.pull(&registry.image("a")).unwrap();
    fresh.pull(&registry.image("b")).unwrap();
    let error = fresh.store.remove(image.config_digest.short()).unwrap_err().to_string();
    assert!(error.contains("several images"), "{error}");
    assert!(fresh.store.remove("no-such").unwrap_err().to_string().contains("no-such"));
}
