//! Small images made in memory, and stores to pull them into.

use std::io::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use images::auth::Keychain;
use images::registry::{RegistryOptions, Timing};
use images::{Digest, Event, Image, ImageSource, Progress, PullError, PullOptions, Silent, Store};
use serde_json::{Value, json};

use crate::fake::Content;

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image of one platform.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub content: Content,
    pub manifest: Vec<u8>,
    /// The stored layers, lowest first.
    pub layers: Vec<Vec<u8>>,
}

impl Fixture {
    /// An image for amd64 with one gzip layer per text.
    pub fn new(texts: &[&str]) -> Self {
        let layers: Vec<_> = texts.iter().map(|text| (tar_of(text), Packing::Gzip)).collect();
        Self::of("amd64", &layers)
    }

    /// An image for amd64 whose one layer has `size` random bytes, so that it can break off in the middle.
    pub fn large(size: usize) -> Self {
        Self::of("amd64", &[(noise(size), Packing::Plain)])
    }

    pub fn of(architecture: &str, layers: &[(Vec<u8>, Packing)]) -> Self {
        let mut content = Content::default();
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Cmd": ["/bin/true"], "Env": ["A=b"]},
        });
        let config = config.to_string().into_bytes();
        let mut descriptors = Vec::new();
        let mut stored = Vec::new();
        for (tar, packing) in layers {
            let (bytes, suffix) = pack(tar, *packing);
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            descriptors.push(descriptor(&media_type, &bytes));
            content.blobs.insert(Digest::of(&bytes).to_string(), bytes.clone());
            stored.push(bytes);
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": descriptors,
        });
        content.blobs.insert(Digest::of(&config).to_string(), config);
        let manifest = manifest.to_string().into_bytes();
        let mut fixture = Self { content, manifest: manifest.clone(), layers: stored };
        fixture.add_manifest("latest", "application/vnd.oci.image.manifest.v1+json", manifest);
        fixture
    }

    /// Makes a manifest known by `tag` and by its digest.
    pub fn add_manifest(&mut self, tag: &str, media_type: &str, bytes: Vec<u8>) {
        for name in [tag.to_owned(), Digest::of(&bytes).to_string()] {
            self.content.manifests.insert(name, (media_type.to_owned(), bytes.clone()));
        }
    }

    /// An index of `latest` over this image and others, each with its architecture.
    pub fn index(images: &[(&str, Fixture)]) -> Self {
        let mut all = images[0].1.clone();
        let mut entries = Vec::new();
        for (architecture, image) in images {
            all.content.blobs.extend(image.content.blobs.clone());
            all.content.manifests.extend(image.content.manifests.clone());
            let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entries.push(entry);
        }
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();
        all.add_manifest("latest", "application/vnd.oci.image.index.v1+json", index);
        all
    }

    /// The digest of the first layer.
    pub fn layer_digest(&self) -> Digest {
        Digest::of(&self.layers[0])
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// A tar stream with one file.
pub fn tar_of(text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// Bytes without a pattern, always the same.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn pack(tar: &[u8], packing: Packing) -> (Vec<u8>, &'static str) {
    match packing {
        Packing::Plain => (tar.to_vec(), ""),
        Packing::Zstd => (zstd::encode_all(tar, 1).unwrap(), "+zstd"),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            (encoder.finish().unwrap(), "+gzip")
        }
    }
}

/// A store of its own, and how to pull into it.
pub struct Fresh {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub options: PullOptions,
}

impl Fresh {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let timing = Timing {
            connect: Duration::from_secs(5),
            stall: Duration::from_millis(300),
            attempts: 3,
            backoff: Duration::from_millis(1),
        };
        let registry = RegistryOptions {
            tls_verify: true,
            keychain: Keychain::default(),
            certs_dirs: Vec::new(),
            timing,
            prepared: None,
        };
        let platform = "linux/amd64".parse().unwrap();
        let options = PullOptions { registry, platform, ..PullOptions::default() };
        Self { dir, store, options }
    }

    pub fn pull(&self, source: &str) -> Result<Image, PullError> {
        self.pull_with(source, &Silent)
    }

    pub fn pull_with(&self, source: &str, progress: &dyn Progress) -> Result<Image, PullError> {
        let source: ImageSource = source.parse().unwrap();
        self.store.pull(&source, &self.options, progress)
    }

    /// The error of a pull that must fail, with its causes, and that nothing is listed or left half done.
    pub fn refused(&self, source: &str) -> String {
        let error = self.pull(source).expect_err("the pull succeeded");
        assert!(self.store.images().unwrap().is_empty());
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// The names of the blobs in the store.
    pub fn blobs(&self) -> Vec<String> {
        let dir = self.store.root().join("blobs/sha256");
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

/// Keeps what it is told.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    pub fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn has(&self, text: &str) -> bool {
        self.events().iter().any(|event| event.contains(text))
    }
}

impl Progress for Recorder {
    fn event(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}
