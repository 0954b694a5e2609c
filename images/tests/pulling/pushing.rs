//! Pushing to a registry that remembers, forgets, breaks connections and takes blobs over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use images::push::{PushError, PushOptions, Pushed};
use images::{Digest, Reference, Silent};

use crate::fake::{Content, Registry, Reply, Request};
use crate::fixture::{Fixture, Fresh, Recorder};

/// A registry that can be written to.
#[derive(Default)]
struct Shelf {
    content: Content,
    /// Bytes by upload.
    uploads: BTreeMap<String, Vec<u8>>,
    /// Uploads begun so far.
    begun: usize,
    /// Repositories whose blobs may be mounted.
    neighbours: Vec<String>,
    /// What a broken connection brought is thrown away.
    forgetful: bool,
}

impl Shelf {
    fn serve(&mut self, request: &Request) -> Reply {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let parameter = |name: &str| {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.replace("%3A", ":").replace("%2F", "/"))
        };
        let whole = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        let broken = request.body.len() < whole;
        match (request.method.as_str(), path.split_once("/blobs/uploads/")) {
            ("POST", Some(_)) => {
                if parameter("from").is_some_and(|from| self.neighbours.contains(&from)) {
                    return Reply::new(201, "");
                }
                let upload = format!("{path}{}", self.begun);
                self.begun += 1;
                self.uploads.insert(upload.clone(), Vec::new());
                Reply::new(202, "").with("location", &format!("{upload}?state=0"))
            }
            (method, Some(_)) => {
                if broken && self.forgetful {
                    self.uploads.remove(path);
                }
                let Some(bytes) = self.uploads.get_mut(path) else { return Reply::new(404, "{}") };
                let first =
                    request.header("content-range").map_or("0", |range| range.split_once('-').unwrap().0);
                if method == "PATCH" && first != bytes.len().to_string() {
                    return Reply::new(416, "{}");
                }
                bytes.extend(&request.body);
                let range = format!("0-{}", bytes.len().saturating_sub(1));
                let location = format!("{path}?state={}", bytes.len());
                match (method, parameter("digest")) {
                    ("PUT", Some(digest)) if Digest::of(bytes).to_string() == digest => {
                        self.content.blobs.insert(digest, bytes.clone());
                        Reply::new(201, "")
                    }
                    ("PUT", _) => Reply::new(400, r#"{"errors":[{"message":"digest invalid"}]}"#),
                    ("GET", _) => Reply::new(204, "").with("range", &range).with("location", &location),
                    _ => Reply::new(202, "").with("range", &range).with("location", &location),
                }
            }
            ("PUT", None) => {
                let (_, tag) = path.split_once("/manifests/").unwrap();
                let media_type = request.header("content-type").unwrap().to_owned();
                self.content.manifests.insert(tag.to_owned(), (media_type, request.body.clone()));
                let digest = Digest::of(&request.body).to_string();
                Reply::new(201, "").with("docker-content-digest", &digest)
            }
            _ => self.content.serve(request),
        }
    }
}

/// A store with the image of `fixture`, called `local:1`.
fn stored(fixture: &Fixture) -> (Fresh, Registry) {
    let fresh = Fresh::new();
    let source = Registry::start(fixture.content.clone());
    let name = source.image("origin");
    fresh.pull(&name).unwrap();
    fresh.store.tag(&name, &"local:1".parse().unwrap()).unwrap();
    (fresh, source)
}

fn push(fresh: &Fresh, target: &str, progress: &dyn images::Progress) -> Result<Pushed, PushError> {
    let options = PushOptions { registry: fresh.options.registry.clone(), parallel: 2 };
    let target: Reference = target.parse().unwrap();
    fresh.store.push("local:1", Some(&target), &options, progress)
}

fn shelf(shelf: Shelf) -> (Registry, Arc<Mutex<Shelf>>) {
    let shelf = Arc::new(Mutex::new(shelf));
    let served = shelf.clone();
    (Registry::with(move |request, _| served.lock().unwrap().serve(request)), shelf)
}

#[test]
fn an_image_arrives_as_it_is_stored_and_is_sent_once() {
    let fixture = Fixture::new(&["a", "b"]);
    let (fresh, _source) = stored(&fixture);
    let (registry, shelf) = shelf(Shelf::default());
    let pushed = push(&fresh, &registry.image("app:2"), &Silent).unwrap();
    assert_eq!(pushed.digest, Digest::of(&fixture.manifest));
    {
        let shelf = shelf.lock().unwrap();
        assert_eq!(shelf.content.blobs, fixture.content.blobs);
        let expected = ("application/vnd.oci.image.manifest.v1+json".to_owned(), fixture.manifest.clone());
        assert_eq!(shelf.content.manifests["2"], expected);
        assert_eq!(pushed.sent, fixture.content.blobs.values().map(|bytes| bytes.len() as u64).sum::<u64>());
    }
    let again = push(&fresh, &registry.image("app:3"), &Silent).unwrap();
    assert_eq!(again.sent, 0);
    // What was pushed can be pulled.
    let other = Fresh::new();
    assert_eq!(other.pull(&registry.image("app:2")).unwrap().manifest_digest, pushed.digest);
}

#[test]
fn a_broken_upload_goes_on_where_it_broke() {
    let fixture = Fixture::large(3 << 20);
    let (fresh, _source) = stored(&fixture);
    let shelf = Arc::new(Mutex::new(Shelf::default()));
    let served = shelf.clone();
    let first_part = |request: &Request, _: usize| {
        (request.method == "PATCH" && request.header("content-range").is_none()).then_some(1 << 20)
    };
    let registry = Registry::cutting(first_part, move |request, _| served.lock().unwrap().serve(request));
    let recorder = Recorder::default();
    let pushed = push(&fresh, &registry.image("app"), &recorder).unwrap();
    assert!(recorder.has("resumed_at: 1048576"), "{:?}", recorder.events());
    assert!(recorder.has("Retrying"));
    assert!(pushed.sent < 3 << 20);
    assert_eq!(shelf.lock().unwrap().content.blobs, fixture.content.blobs);
}

#[test]
fn an_upload_that_the_registry_forgot_begins_anew() {
    let fixture = Fixture::large(3 << 20);
    let (fresh, _source) = stored(&fixture);
    let shelf = Arc::new(Mutex::new(Shelf { forgetful: true, ..Shelf::default() }));
    let served = shelf.clone();
    let cut = |request: &Request, _: usize| {
        (request.method == "PATCH" && request.path.contains("/uploads/0")).then_some(1 << 20)
    };
    let registry = Registry::cutting(cut, move |request, _| served.lock().unwrap().serve(request));
    push(&fresh, &registry.image("app"), &Silent).unwrap();
    assert_eq!(shelf.lock().unwrap().content.blobs, fixture.content.blobs);
}

#[test]
fn a_registry_that_always_breaks_off_is_given_up() {
    let (fresh, _source) = stored(&Fixture::large(1 << 20));
    let cut = |request: &Request, _: usize| (request.method == "PATCH").then_some(0);
    let shelf = Mutex::new(Shelf::default());
    let registry = Registry::cutting(cut, move |request, _| shelf.lock().unwrap().serve(request));
    let error = push(&fresh, &registry.image("app"), &Silent).unwrap_err();
    assert!(matches!(error, PushError::Registry(_)), "{error}");
    assert!(registry.requests().iter().filter(|request| request.method == "PATCH").count() <= 3);
}

#[test]
fn blobs_of_another_repository_are_taken_over() {
    let fixture = Fixture::new(&["a", "b"]);
    let fresh = Fresh::new();
    let taking =
        Shelf { content: fixture.content.clone(), neighbours: vec!["team/base".into()], ..Shelf::default() };
    let shelf = Arc::new(Mutex::new(taking));
    let served = shelf.clone();
    let registry = Registry::with(move |request, _| {
        // The new repository has nothing yet.
        match request.method == "HEAD" && request.path.contains("/v2/app/") {
            true => Reply::new(404, ""),
            false => served.lock().unwrap().serve(request),
        }
    });
    fresh.pull(&registry.image("team/base")).unwrap();
    fresh.store.tag(&registry.image("team/base"), &"local:1".parse().unwrap()).unwrap();
    let pushed = push(&fresh, &registry.image("app"), &Silent).unwrap();
    assert_eq!(pushed.sent, 0);
    let mounts =
        registry.requests().iter().filter(|request| request.path.contains("from=team%2Fbase")).count();
    assert_eq!(mounts, 3);
    assert!(!registry.requests().iter().any(|request| request.method == "PATCH"));
}

#[test]
fn what_cannot_be_pushed_says_why() {
    let fixture = Fixture::new(&["a"]);
    let (fresh, source) = stored(&fixture);
    let options = PushOptions { registry: fresh.options.registry.clone(), parallel: 1 };
    let other = format!("{}@{}", source.image("x"), Digest::of(b"x"));
    let error = push(&fresh, &other, &Silent).unwrap_err().to_string();
    assert!(error.contains("push it to a tag"), "{error}");
    // A registry that can only be read.
    let error = push(&fresh, &source.image("x:1"), &Silent).unwrap_err().to_string();
    assert!(error.contains(&source.address), "{error}");
    assert!(fresh.store.push("nothing", None, &options, &Silent).is_err());
    let lying = Registry::with(|request, _| match request.method.as_str() {
        "HEAD" => Reply::new(200, ""),
        _ => Reply::new(201, "").with("docker-content-digest", &Digest::of(b"x").to_string()),
    });
    let error = push(&fresh, &lying.image("x:1"), &Silent).unwrap_err().to_string();
    assert!(error.contains("it stored the manifest as"), "{error}");
}
