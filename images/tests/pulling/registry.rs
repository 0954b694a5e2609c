//! Pulls that work: names, platforms, compressions, policies, sharing.

use images::{Compression, Digest, PullPolicy};

use crate::fake::Registry;
use crate::fixture::{Fixture, Fresh, Packing, Recorder, tar_of};

#[test]
fn an_image_is_pulled_and_then_needs_no_network() {
    let fixture = Fixture::new(&["lower", "upper"]);
    let registry = Registry::start(fixture.content.clone());
    let fresh = Fresh::new();
    let name = registry.image("team/app");
    let recorder = Recorder::default();
    let image = fresh.pull_with(&name, &recorder).unwrap();

    assert_eq!(image.name, format!("{name}:latest"));
    assert_eq!(image.manifest_digest, Digest::of(&fixture.manifest));
    assert_eq!(image.process().cmd().clone().unwrap(), ["/bin/true"]);
    assert_eq!(image.layers().len(), 2);
    for (layer, stored) in image.layers().iter().zip(&fixture.layers) {
        assert_eq!(std::fs::read(layer.path()).unwrap(), *stored);
        assert_eq!(layer.compression, Compression::Gzip);
    }
    assert_eq!(image.layers()[1].diff_id.0, Digest::of(&tar_of("upper")));
    assert!(recorder.has("Resolved"));
    assert_eq!(recorder.events().iter().filter(|event| event.starts_with("LayerDone")).count(), 2);

    drop(registry);
    assert_eq!(fresh.pull(&name).unwrap().chain_id(), image.chain_id());
    let by_id = fresh.store.image(image.config_digest.short()).unwrap();
    assert_eq!(by_id.name, image.name);
}

#[test]
fn layers_of_every_compression_are_stored_as_they_came() {
    let layers =
        [(tar_of("plain"), Packing::Plain), (tar_of("gzip"), Packing::Gzip), (tar_of("zstd"), Packing::Zstd)];
    let fixture = Fixture::of("amd64", &layers);
    let registry = Registry::start(fixture.content);
    let image = Fresh::new().pull(&registry.image("app")).unwrap();
    let compressions: Vec<_> = image.layers().iter().map(|layer| layer.compression).collect();
    assert_eq!(compressions, [Compression::None, Compression::Gzip, Compression::Zstd]);
}

#[test]
fn the_platform_of_an_index_is_selected() {
    let arm = Fixture::of("arm64", &[(tar_of("arm"), Packing::Gzip)]);
    let amd = Fixture::of("amd64", &[(tar_of("amd"), Packing::Gzip)]);
    let index = Fixture::index(&[("arm64", arm.clone()), ("amd64", amd.clone())]);
    let registry = Registry::start(index.content);
    let mut fresh = Fresh::new();
    let name = registry.image("app");
    assert_eq!(fresh.pull(&name).unwrap().manifest_digest, Digest::of(&amd.manifest));
    assert_eq!(registry.blob_requests().len(), 2, "only this platform's configuration and layer");

    fresh.options.platform = "linux/arm64".parse().unwrap();
    assert_eq!(fresh.pull(&name).unwrap().manifest_digest, Digest::of(&arm.manifest));

    let fresh = {
        let mut fresh = Fresh::new();
        fresh.options.platform = "linux/s390x".parse().unwrap();
        fresh
    };
    let error = fresh.refused(&name);
    assert!(error.contains("linux/s390x") && error.contains("linux/arm64, linux/amd64"), "{error}");
}

#[test]
fn an_image_for_another_machine_is_refused_by_its_configuration() {
    let registry = Registry::start(Fixture::of("arm64", &[(tar_of("x"), Packing::Gzip)]).content);
    let fresh = Fresh::new();
    let error = fresh.refused(&registry.image("app"));
    assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
    assert_eq!(registry.blob_requests().len(), 1, "no layer is fetched");
}

#[test]
fn a_digest_is_pulled_and_verified() {
    let fixture = Fixture::new(&["x"]);
    let digest = Digest::of(&fixture.manifest);
    let registry = Registry::start(fixture.content);
    let fresh = Fresh::new();
    let name = registry.image(&format!("app@{digest}"));
    assert_eq!(fresh.pull(&name).unwrap().manifest_digest, digest);
    assert_eq!(fresh.store.images().unwrap()[0].name, name);
}

#[test]
fn policies_decide_who_is_asked() {
    let registry = Registry::start(Fixture::new(&["x"]).content);
    let name = registry.image("app");
    let mut fresh = Fresh::new();

    fresh.options.policy = PullPolicy::Never;
    assert!(fresh.refused(&name).contains("--pull never"));
    assert!(registry.requests().is_empty());

    fresh.options.policy = PullPolicy::Always;
    fresh.pull(&name).unwrap();
    let before = registry.requests().len();
    fresh.pull(&name).unwrap();
    let again: Vec<_> = registry.requests().drain(before..).map(|request| request.method).collect();
    assert_eq!(again, ["HEAD"], "an unchanged tag costs one HEAD");

    fresh.options.policy = PullPolicy::Never;
    fresh.pull(&name).unwrap();
    fresh.options.policy = PullPolicy::Missing;
    fresh.pull(&name).unwrap();
    assert_eq!(registry.requests().len(), before + 1);
}

#[test]
fn a_tag_that_moved_is_fetched_but_shared_layers_are_not() {
    let old = Fixture::new(&["shared", "old"]);
    let new = Fixture::new(&["shared", "new"]);
    let registry = {
        let (old, new) = (old.content.clone(), new.content.clone());
        let moved = std::sync::atomic::AtomicBool::new(false);
        Registry::with(move |request, _| {
            if request.path == "/move" {
                moved.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            if moved.load(std::sync::atomic::Ordering::SeqCst) {
                new.serve(request)
            } else {
                old.serve(request)
            }
        })
    };
    let name = registry.image("app");
    let mut fresh = Fresh::new();
    fresh.pull(&name).unwrap();
    std::io::Write::write_all(
        &mut std::net::TcpStream::connect(&registry.address).unwrap(),
        b"GET /move HTTP/1.1\r\n\r\n",
    )
    .unwrap();
    while !registry.requests().iter().any(|request| request.path == "/move") {
        std::thread::yield_now();
    }
    let before = registry.blob_requests().len();
    fresh.options.policy = PullPolicy::Always;
    let image = fresh.pull(&name).unwrap();
    assert_eq!(image.manifest_digest, Digest::of(&new.manifest));
    assert_eq!(registry.blob_requests().len() - before, 2, "the new configuration and one layer");
    let collected = {
        drop(image);
        fresh.store.prune().unwrap()
    };
    assert_eq!(collected.files, 3, "the old manifest, configuration and layer");
}

#[test]
fn two_pulls_at_once_share_the_work() {
    let fixture = Fixture::large(3 << 20);
    let registry = Registry::start(fixture.content.clone());
    let fresh = Fresh::new();
    let name = registry.image("app");
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| fresh.pull(&name).unwrap())).collect();
        for pull in pulls {
            assert_eq!(pull.join().unwrap().manifest_digest, Digest::of(&fixture.manifest));
        }
    });
    let mut paths: Vec<_> = registry.blob_requests().into_iter().map(|request| request.path).collect();
    paths.sort();
    let all = paths.len();
    paths.dedup();
    assert_eq!(all, paths.len(), "a blob was fetched twice");
}

#[test]
fn a_layer_that_is_there_twice_is_fetched_once() {
    let registry = Registry::start(Fixture::new(&["same", "same"]).content);
    let image = Fresh::new().pull(&registry.image("app")).unwrap();
    assert_eq!(image.layers().len(), 2);
    assert_eq!(registry.blob_requests().len(), 2, "the configuration and one layer");
}

#[test]
fn a_damaged_blob_is_pulled_again() {
    let fixture = Fixture::new(&["x"]);
    let registry = Registry::start(fixture.content.clone());
    let fresh = Fresh::new();
    let name = registry.image("app");
    let layer = fresh.pull(&name).unwrap().layers()[0].path().to_owned();
    std::fs::remove_file(&layer).unwrap();
    assert!(fresh.store.image(&name).unwrap_err().to_string().contains("--pull always"));
    fresh.pull(&name).unwrap();
    assert_eq!(std::fs::read(&layer).unwrap(), fixture.layers[0]);
}
