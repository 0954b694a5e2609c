//! Registries that break off, stall, lie or flood.

use std::time::{Duration, Instant};

use crate::fake::{Content, Ending, Registry, Reply, Request};
use crate::fixture::{Fixture, Fresh, Recorder, descriptor};

/// Serves `content`, but lets `spoil` change the answers to the first `count` requests for each layer.
fn spoiled(
    fixture: &Fixture,
    count: usize,
    spoil: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> Registry {
    let (content, layer) = (fixture.content.clone(), fixture.layer_digest().to_string());
    Registry::with(move |request, earlier| {
        let reply = content.serve(request);
        if request.path.ends_with(&layer) && earlier < count { spoil(request, reply) } else { reply }
    })
}

fn ranges(registry: &Registry, fixture: &Fixture) -> Vec<Option<String>> {
    let layer = fixture.layer_digest().to_string();
    let requests = registry.blob_requests().into_iter().filter(|request| request.path.ends_with(&layer));
    requests.map(|request| request.header("range").map(str::to_owned)).collect()
}

fn range(first: usize) -> Option<String> {
    Some(format!("bytes={first}-"))
}

#[test]
fn a_layer_that_breaks_off_goes_on_where_it_stopped() {
    let fixture = Fixture::large(1 << 20);
    let registry = spoiled(&fixture, 2, |_, reply| Reply { ending: Ending::CutAfter(300_000), ..reply });
    let recorder = Recorder::default();
    let fresh = Fresh::new();
    let image = fresh.pull_with(&registry.image("app"), &recorder).unwrap();
    assert_eq!(ranges(&registry, &fixture), [None, range(300_000), range(600_000)]);
    assert_eq!(std::fs::read(image.layers()[0].path()).unwrap(), fixture.layers[0]);
    assert!(recorder.has("Retrying"));
}

#[test]
fn a_pull_that_was_given_up_goes_on_in_the_next() {
    let fixture = Fixture::large(1 << 20);
    let registry = spoiled(&fixture, 1, |_, reply| Reply { ending: Ending::CutAfter(400_000), ..reply });
    let mut fresh = Fresh::new();
    fresh.options.registry.timing.attempts = 1;
    let error = fresh.refused(&registry.image("app"));
    assert!(error.contains("broke off"), "{error}");
    fresh.pull(&registry.image("app")).unwrap();
    assert_eq!(ranges(&registry, &fixture), [None, range(400_000)]);
}

#[test]
fn a_damaged_beginning_is_fetched_anew() {
    let fixture = Fixture::large(1 << 20);
    let registry = spoiled(&fixture, 1, |_, reply| Reply { ending: Ending::CutAfter(400_000), ..reply });
    let mut fresh = Fresh::new();
    fresh.options.registry.timing.attempts = 1;
    fresh.refused(&registry.image("app"));
    // As after a power cut: the length is right, the bytes are not.
    let partial = fresh.store.root().join(format!("blobs/partial/sha256-{}", fixture.layer_digest().hex()));
    let length = std::fs::metadata(&partial).unwrap().len();
    std::fs::write(&partial, vec![0; length as usize]).unwrap();
    fresh.pull(&registry.image("app")).unwrap();
    assert_eq!(ranges(&registry, &fixture), [None, range(400_000), None]);
}

#[test]
fn a_registry_without_ranges_starts_over() {
    let fixture = Fixture::large(1 << 20);
    let content = fixture.content.clone();
    let registry = Registry::with(move |request, earlier| {
        let mut request = request.clone();
        request.headers.remove("range");
        let reply = content.serve(&request);
        match request.is_blob() && reply.body.len() == 1 << 20 && earlier == 0 {
            true => Reply { ending: Ending::CutAfter(1000), ..reply },
            false => reply,
        }
    });
    let fresh = Fresh::new();
    let image = fresh.pull(&registry.image("app")).unwrap();
    assert_eq!(std::fs::read(image.layers()[0].path()).unwrap(), fixture.layers[0]);
}

#[test]
fn another_part_than_was_asked_for_is_refused() {
    let fixture = Fixture::large(1 << 20);
    let registry = spoiled(&fixture, 9, |request, reply| match request.header("range") {
        None => Reply { ending: Ending::CutAfter(1000), ..reply },
        Some(_) => Reply { headers: vec![("content-range".into(), "bytes 5-9/1048576".into())], ..reply },
    });
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("another part"), "{error}");
}

#[test]
fn a_connection_that_stands_still_is_given_up_and_tried_again() {
    let fixture = Fixture::large(1 << 20);
    let registry = spoiled(&fixture, 1, |_, reply| Reply { ending: Ending::StallAfter(500_000), ..reply });
    let start = Instant::now();
    Fresh::new().pull(&registry.image("app")).unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(ranges(&registry, &fixture), [None, range(500_000)]);
}

#[test]
fn a_registry_that_stalls_for_ever_is_an_error() {
    let fixture = Fixture::large(1 << 20);
    let registry = spoiled(&fixture, 99, |_, reply| Reply { ending: Ending::StallAfter(0), ..reply });
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains(&registry.address), "{error}");
    assert_eq!(ranges(&registry, &fixture).len(), 3);
}

#[test]
fn a_wrong_digest_is_refused_and_nothing_is_kept() {
    let fixture = Fixture::large(1 << 16);
    let registry = spoiled(&fixture, 99, |_, mut reply| {
        reply.body[77] ^= 1;
        reply
    });
    let fresh = Fresh::new();
    let error = fresh.refused(&registry.image("app"));
    assert!(error.contains(&fixture.layer_digest().to_string()) && error.contains("tampered"), "{error}");
    assert!(!fresh.blobs().contains(&fixture.layer_digest().hex().to_owned()));
    assert_eq!(ranges(&registry, &fixture).len(), 1, "a lie is not asked for again");
}

#[test]
fn more_bytes_than_the_manifest_says_are_refused() {
    let fixture = Fixture::large(1 << 16);
    let registry = spoiled(&fixture, 99, |_, mut reply| {
        reply.body.extend([0; 100_000]);
        reply
    });
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("65536"), "{error}");
}

#[test]
fn fewer_bytes_than_the_manifest_says_are_refused() {
    let fixture = Fixture::large(1 << 16);
    let registry = spoiled(&fixture, 99, |request, mut reply| {
        if request.header("range").is_some() {
            return Reply::new(416, "");
        }
        reply.body.truncate(1000);
        reply
    });
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("1000 of 65536 bytes"), "{error}");
}

#[test]
fn a_server_error_passes_or_is_reported() {
    let fixture = Fixture::large(1 << 10);
    let registry = spoiled(&fixture, 2, |_, _| Reply::new(503, "busy"));
    Fresh::new().pull(&registry.image("app")).unwrap();

    let registry =
        Registry::with(|_, _| Reply::new(500, r#"{"errors":[{"message":"disk on fire\u001b[2J"}]}"#));
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("500") && error.contains("disk on fire[2J"), "{error}");
    let manifests = registry.requests().iter().filter(|request| request.path.contains("/manifests/")).count();
    assert_eq!(manifests, 3);
}

#[test]
fn a_rate_limit_is_waited_for_if_it_is_short() {
    let fixture = Fixture::large(1 << 10);
    let registry = spoiled(&fixture, 1, |_, _| Reply::new(429, "").with("retry-after", "0"));
    Fresh::new().pull(&registry.image("app")).unwrap();

    let registry = spoiled(&fixture, 1, |_, _| Reply::new(429, "").with("retry-after", "3600"));
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("limits the number of requests"), "{error}");
}

#[test]
fn an_unknown_image_is_named() {
    let registry = Registry::start(Content::default());
    let error = Fresh::new().refused(&registry.image("no/such:tag"));
    assert!(error.contains("no/such:tag") && error.contains("manifest unknown"), "{error}");
}

#[test]
fn an_unreachable_registry_is_named() {
    let address = Registry::start(Content::default()).address.clone();
    let error = Fresh::new().refused(&format!("{address}/app"));
    assert!(error.contains("cannot reach registry") && error.contains(&address), "{error}");
}

#[test]
fn redirects_end() {
    let fixture = Fixture::large(1 << 10);
    let registry = spoiled(&fixture, 99, |request, _| Reply::new(302, "").with("location", &request.path));
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("redirects for ever"), "{error}");
}

#[test]
fn an_endless_manifest_is_refused() {
    let registry = Registry::with(|request, _| match request.path.contains("/manifests/") {
        true => Reply::new(200, vec![b' '; 5 << 20]),
        false => Reply::new(200, ""),
    });
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("larger than 4194304"), "{error}");
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let mut fixture = Fixture::new(&["a"]);
    let honest = images::Digest::of(&fixture.manifest).to_string();
    let other = Fixture::new(&["b"]);
    fixture.content.blobs.extend(other.content.blobs);
    let media_type = fixture.content.manifests[&honest].0.clone();
    fixture.content.manifests.insert(honest.clone(), (media_type, other.manifest));
    let registry = Registry::start(fixture.content);
    let error = Fresh::new().refused(&registry.image(&format!("app@{honest}")));
    assert!(error.contains(&honest), "{error}");
}

#[test]
fn indexes_that_lead_to_indexes_end() {
    let mut fixture = Fixture::new(&["a"]);
    for _ in 0..4 {
        let (media_type, below) = fixture.content.manifests["latest"].clone();
        let mut entry = descriptor(&media_type, &below);
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        fixture.add_manifest("latest", "application/vnd.oci.image.index.v1+json", index.into_bytes());
    }
    let registry = Registry::start(fixture.content);
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("for ever"), "{error}");
}

#[test]
fn an_image_that_cannot_fit_is_refused_before_anything_is_fetched() {
    let mut fixture = Fixture::new(&["a"]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&fixture.manifest).unwrap();
    manifest["layers"][0]["size"] = serde_json::json!(u64::MAX);
    let bytes = manifest.to_string().into_bytes();
    fixture.add_manifest("latest", "application/vnd.oci.image.manifest.v1+json", bytes);
    let registry = Registry::start(fixture.content);
    let error = Fresh::new().refused(&registry.image("app"));
    assert!(error.contains("18446744073709551615 bytes") && error.contains("prune"), "{error}");
}

#[test]
fn one_failing_layer_stops_the_others() {
    let fixture = Fixture::new(&["a", "b", "c", "d", "e", "f"]);
    let content = fixture.content.clone();
    let config = serde_json::from_slice::<serde_json::Value>(&fixture.manifest).unwrap()["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let registry =
        Registry::with(move |request, _| match request.is_blob() && !request.path.ends_with(&config) {
            true => Reply::new(404, ""),
            false => content.serve(request),
        });
    let mut fresh = Fresh::new();
    fresh.options.parallel = 2;
    let error = fresh.refused(&registry.image("app"));
    assert!(!error.contains("given up"), "{error}");
    assert!(registry.blob_requests().len() <= 4, "the configuration and at most one more than two");
}
