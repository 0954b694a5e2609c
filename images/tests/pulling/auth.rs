//! Who asks: the token dance, passwords, and that no secret goes where it does not belong.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use images::auth::Keychain;

use crate::fake::{Content, Registry, Reply, Request};
use crate::fixture::{Fixture, Fresh};

/// Credentials for every registry on loopback, in a file as Docker writes it.
fn log_in(fresh: &mut Fresh, address: &str, entry: &str) {
    let path = fresh.dir.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{address}":{entry}}}}}"#)).unwrap();
    fresh.options.registry.keychain = Keychain { files: vec![path], ..Keychain::default() };
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

fn password_entry(pair: &str) -> String {
    format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(pair))
}

/// Serves `content` to who has the token `good`, which `give_token` says how to get.
fn bearer(content: Content, give_token: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Registry {
    Registry::with(move |request, _| {
        if request.path.starts_with("/token") {
            return match give_token(request) {
                true => Reply::new(200, r#"{"token":"good","expires_in":60}"#),
                false => Reply::new(401, r#"{"details":"who are you?"}"#),
            };
        }
        if request.header("authorization") == Some("Bearer good") {
            return content.serve(request);
        }
        // The scope asks for more than a pull needs.
        let realm = format!("http://{}/token", request.header("host").unwrap());
        let challenge = format!(r#"Bearer realm="{realm}",service="fake",scope="repository:app:pull,push""#);
        Reply::new(401, "").with("www-authenticate", &challenge)
    })
}

#[test]
fn a_token_is_fetched_once_and_only_for_pulling() {
    let pair = basic("user:pass:word");
    let registry = bearer(Fixture::new(&["a", "b", "c"]).content, move |request| {
        request.method == "GET" && request.header("authorization") == Some(&pair)
    });
    let mut fresh = Fresh::new();
    log_in(&mut fresh, &registry.address, &password_entry("user:pass:word"));
    fresh.pull(&registry.image("team/app")).unwrap();
    let requests = registry.requests();
    let tokens: Vec<_> = requests.iter().filter(|request| request.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].path, "/token?service=fake&scope=repository%3Ateam%2Fapp%3Apull");
}

#[test]
fn an_anonymous_token_is_enough_for_a_public_image() {
    let registry = bearer(Fixture::new(&["a"]).content, |request| request.header("authorization").is_none());
    Fresh::new().pull(&registry.image("app")).unwrap();
}

#[test]
fn an_identity_token_is_exchanged() {
    let registry = bearer(Fixture::new(&["a"]).content, |request| {
        request.method == "POST"
            && request.text().contains("grant_type=refresh_token")
            && request.text().contains("refresh_token=secret%2Btoken")
    });
    let mut fresh = Fresh::new();
    log_in(&mut fresh, &registry.address, r#"{"identitytoken":"secret+token"}"#);
    fresh.pull(&registry.image("app")).unwrap();
}

#[test]
fn a_password_answers_a_basic_challenge() {
    let content = Fixture::new(&["a"]).content;
    let registry = Registry::with(move |request, _| {
        if request.header("authorization") == Some(&basic("u:p")) {
            return content.serve(request);
        }
        Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"")
    });
    let mut fresh = Fresh::new();
    log_in(&mut fresh, &registry.address, &password_entry("u:p"));
    fresh.pull(&registry.image("app")).unwrap();
}

#[test]
fn refusals_say_what_to_do_and_keep_the_secret() {
    let registry = bearer(Fixture::new(&["a"]).content, |_| false);
    let mut fresh = Fresh::new();
    let error = fresh.refused(&registry.image("app"));
    assert!(error.contains("docker login") && error.contains("who are you?"), "{error}");

    log_in(&mut fresh, &registry.address, &password_entry("user:hunter2"));
    let error = fresh.refused(&registry.image("app"));
    assert!(error.contains("log in again") && !error.contains("hunter2"), "{error}");

    log_in(&mut fresh, &registry.address, r#"{"auth":"%"}"#);
    let error = fresh.refused(&registry.image("app"));
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn a_password_that_was_used_is_in_no_file_of_the_store_and_in_no_debug_output() {
    let content = Fixture::new(&["a"]).content;
    let registry = Registry::with(move |request, _| {
        if request.header("authorization") == Some(&basic("user:hunter2")) {
            return content.serve(request);
        }
        Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"")
    });
    let mut fresh = Fresh::new();
    log_in(&mut fresh, &registry.address, &password_entry("user:hunter2"));
    let image = fresh.pull(&registry.image("app")).unwrap();
    let forms = ["hunter2".to_owned(), STANDARD.encode("user:hunter2")];
    let shown = format!("{:?} {image:?}", fresh.options);
    assert!(forms.iter().all(|form| !shown.contains(form)), "{shown}");
    let mut directories = vec![fresh.store.root().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
                continue;
            }
            let text = String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned();
            assert!(forms.iter().all(|form| !text.contains(form)), "{:?}", entry.path());
        }
    }
}

#[test]
fn an_expired_token_is_renewed() {
    let content = Fixture::new(&["a"]).content;
    let tokens = std::sync::atomic::AtomicUsize::new(0);
    let registry = Registry::with(move |request, _| {
        use std::sync::atomic::Ordering;
        if request.path.starts_with("/token") {
            let number = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, format!(r#"{{"access_token":"t{number}"}}"#));
        }
        // The first token is good for manifests only, as if it had expired before the blobs.
        let wanted = if request.is_blob() { "Bearer t2" } else { "Bearer t1" };
        if request.header("authorization") == Some(wanted) {
            return content.serve(request);
        }
        let realm = format!("http://{}/token", request.header("host").unwrap());
        Reply::new(401, "").with("www-authenticate", &format!("Bearer realm=\"{realm}\""))
    });
    Fresh::new().pull(&registry.image("app")).unwrap();
}

#[test]
fn a_redirect_to_another_server_does_not_carry_the_secret() {
    let content = Fixture::new(&["a", "b"]).content;
    let storage = Arc::new(Registry::start(content.clone()));
    let elsewhere = storage.address.clone();
    let registry = Registry::with(move |request, _| {
        if request.header("authorization") != Some(&basic("u:p")) {
            return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
        }
        if request.is_blob() {
            return Reply::new(307, "").with("location", &format!("http://{elsewhere}{}", request.path));
        }
        content.serve(request)
    });
    let mut fresh = Fresh::new();
    log_in(&mut fresh, &registry.address, &password_entry("u:p"));
    fresh.pull(&registry.image("app")).unwrap();
    assert_eq!(storage.requests().len(), 3);
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn a_server_behind_a_redirect_cannot_ask_for_the_secret() {
    let storage = Registry::with(|_, _| Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""));
    let elsewhere = format!("http://{}/blob", storage.address);
    let content = Fixture::new(&["a"]).content;
    let registry = Registry::with(move |request, _| match request.is_blob() {
        true => Reply::new(302, "").with("location", &elsewhere),
        false => content.serve(request),
    });
    let mut fresh = Fresh::new();
    log_in(&mut fresh, &registry.address, &password_entry("u:p"));
    fresh.refused(&registry.image("app"));
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}
