//! Images that must be signed: keys and signatures are made by openssl, as `cosign sign --key` makes them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use images::pull::PullPolicy;
use images::signature::PublicKey;
use images::{Digest, PullOptions};
use serde_json::{Value, json};

use crate::fake::Registry;
use crate::fixture::{Fixture, Fresh, descriptor};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A key pair in a directory.
struct Signer {
    dir: tempfile::TempDir,
}

impl Signer {
    fn new() -> Self {
        Self::on_curve("prime256v1")
    }

    fn on_curve(curve: &str) -> Self {
        let signer = Self { dir: tempfile::tempdir().unwrap() };
        openssl(&[
            "ecparam",
            "-genkey",
            "-noout",
            "-name",
            curve,
            "-out",
            signer.file("key").to_str().unwrap(),
        ]);
        let (private, public) = (signer.file("key"), signer.public());
        openssl(&["ec", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
        signer
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn public(&self) -> PathBuf {
        self.file("key.pub")
    }

    fn key(&self) -> PublicKey {
        PublicKey::open(&self.public()).unwrap()
    }

    fn sign(&self, payload: &[u8]) -> String {
        std::fs::write(self.file("payload"), payload).unwrap();
        let (key, out, payload) = (self.file("key"), self.file("signature"), self.file("payload"));
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        openssl(&["dgst", "-sha256", "-sign", &path(&key), "-out", &path(&out), &path(&payload)]);
        STANDARD.encode(std::fs::read(out).unwrap())
    }
}

fn openssl(arguments: &[&str]) {
    let status = Command::new("openssl").args(arguments).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "openssl {arguments:?}");
}

fn payload(digest: &Digest) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": "example.org/image"},
        "image": {"docker-manifest-digest": digest.to_string()},
        "type": "cosign container image signature",
    });
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

/// What `latest` is.
fn digest_of(fixture: &Fixture) -> Digest {
    Digest::of(&fixture.content.manifests["latest"].1)
}

/// Adds payloads with their signatures where cosign would.
fn attach(fixture: &mut Fixture, to: &Digest, signatures: &[(Vec<u8>, String)]) {
    let layers: Vec<Value> = signatures
        .iter()
        .map(|(payload, signature)| {
            fixture.content.blobs.insert(Digest::of(payload).to_string(), payload.clone());
            let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", payload);
            layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
            layer
        })
        .collect();
    let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    fixture.add_manifest(&format!("sha256-{}.sig", to.hex()), MANIFEST, manifest.to_string().into_bytes());
}

fn store_for(signer: &Signer) -> Fresh {
    let mut fresh = Fresh::new();
    fresh.options.signed_by = Some(signer.key());
    fresh
}

#[test]
fn a_signed_image_is_pulled_and_then_runs_without_its_registry() {
    let (signer, mut fixture) = (Signer::new(), Fixture::new(&["one"]));
    let digest = digest_of(&fixture);
    let signature = signer.sign(&payload(&digest));
    // Somebody else's is no obstacle.
    let foreign = Signer::new().sign(&payload(&digest));
    attach(&mut fixture, &digest, &[(payload(&digest), foreign), (payload(&digest), signature)]);
    let registry = Registry::start(fixture.content);
    let mut fresh = store_for(&signer);
    let name = registry.image("image");
    fresh.pull(&name).unwrap();
    let asked = registry.requests().len();
    fresh.options.policy = PullPolicy::Never;
    fresh.pull(&name).unwrap();
    assert_eq!(registry.requests().len(), asked);
    // Another key has not signed it, whatever is in the store.
    fresh.options = PullOptions { signed_by: Some(Signer::new().key()), ..fresh.options };
    let error = fresh.pull(&name).unwrap_err();
    assert!(format!("{error:?}").contains("NotChecked"), "{error:?}");
}

#[test]
fn the_signature_of_an_index_holds_for_each_of_its_images() {
    let signer = Signer::new();
    let mut fixture = Fixture::index(&[("amd64", Fixture::new(&["one"])), ("arm64", Fixture::new(&["two"]))]);
    let digest = digest_of(&fixture);
    let signature = signer.sign(&payload(&digest));
    attach(&mut fixture, &digest, &[(payload(&digest), signature)]);
    let registry = Registry::start(fixture.content);
    store_for(&signer).pull(&registry.image("image")).unwrap();
}

#[test]
fn an_image_that_is_not_signed_is_refused_before_its_layers_come() {
    let fixture = Fixture::new(&["one"]);
    let digest = digest_of(&fixture);
    let registry = Registry::start(fixture.content);
    let error = store_for(&Signer::new()).refused(&registry.image("image"));
    assert!(error.contains("refused, because of --verify-key: nobody has signed"), "{error}");
    assert!(error.contains(&format!("sha256-{}.sig", digest.hex())), "{error}");
    assert!(registry.blob_requests().is_empty());
}

#[test]
fn a_stored_image_that_was_not_checked_is_checked_now() {
    let registry = Registry::start(Fixture::new(&["one"]).content);
    let mut fresh = Fresh::new();
    let name = registry.image("image");
    fresh.pull(&name).unwrap();
    fresh.options.signed_by = Some(Signer::new().key());
    let error = fresh.pull(&name).unwrap_err();
    assert!(format!("{error:?}").contains("Unsigned"), "{error:?}");
}

#[test]
fn what_is_signed_must_be_this_image_by_this_key_and_unchanged() {
    let signer = Signer::new();
    let sign = |payload: &[u8]| signer.sign(payload);
    type Forge<'a> = &'a dyn Fn(&Digest) -> (Vec<u8>, String);
    let other_type = |digest: &Digest| {
        String::from_utf8(payload(digest))
            .unwrap()
            .replace("container image signature", "attestation")
            .into_bytes()
    };
    let forgeries: [(&str, Forge<'_>); 6] = [
        ("it is not by this key", &|digest| (payload(digest), Signer::new().sign(&payload(digest)))),
        ("it is not by this key", &|digest| (payload(digest), sign(&payload(&Digest::of(b"x"))))),
        ("it is for \"sha256:", &|_| {
            let other = payload(&Digest::of(b"another image"));
            let signature = sign(&other);
            (other, signature)
        }),
        ("its payload is a \"cosign attestation\"", &|digest| {
            (other_type(digest), sign(&other_type(digest)))
        }),
        ("its payload: ", &|_| (b"{}".to_vec(), sign(b"{}"))),
        ("no base64 in", &|digest| (payload(digest), "*".to_owned())),
    ];
    for (what, forge) in forgeries {
        let mut fixture = Fixture::new(&["one"]);
        let digest = digest_of(&fixture);
        attach(&mut fixture, &digest, &[forge(&digest)]);
        let registry = Registry::start(fixture.content);
        let error = store_for(&signer).refused(&registry.image("image"));
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn what_is_no_registrys_image_counts_as_unsigned() {
    let fresh = store_for(&Signer::new());
    let error = fresh.refused(&format!("dir:{}", fresh.dir.path().display()));
    assert!(error.contains("only an image of a registry has signatures"), "{error}");
}

#[test]
fn a_file_that_is_no_public_key_of_the_curve_is_refused() {
    let signer = Signer::new();
    for path in [signer.file("key"), Signer::on_curve("secp384r1").public(), signer.file("none")] {
        let error = PublicKey::open(&path).unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
    }
}
