//! What a confined process is told, and what it says: JSON, one line each.

use std::path::PathBuf;

use images::auth::Credentials;
use images::pull::{Failure, Fetched, Unnamed};
use images::registry::{RegistryOptions, Timing};
use images::signature::PublicKey;
use images::{ChainId, DiffId, Digest, Event, Platform, PullOptions};
use serde::{Deserialize, Serialize};

/// Variables that say how to reach the network; a confined process has no others.
const VARIABLES: &[&str] = &[
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "LOCALDOMAIN",
    "RES_OPTIONS",
];

/// All that one process does.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub work: Work,
    pub options: Options,
    /// Descriptors that came with it.
    pub fds: Vec<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Work {
    /// Brings the blobs of an image into a store.
    Fetch { store: PathBuf, source: String, known: Option<Fetched> },
    /// The same with all images of an archive: the file `path`, or what comes from descriptor number `stream` of those
    /// that came with the job.
    Load { store: PathBuf, path: PathBuf, stream: Option<usize> },
    /// Makes a root file system, the first descriptor, of layers, the others.
    Unpack { image: String, at: PathBuf, chain_id: ChainId, layers: Vec<Layered> },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Layered {
    pub name: String,
    pub diff_id: DiffId,
}

/// What of [`PullOptions`] a process needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Options {
    platform: Platform,
    parallel: usize,
    signed_by: Option<PublicKey>,
    tls_verify: bool,
    certs_dirs: Vec<PathBuf>,
    timing: Timing,
    /// The caller's environment, as far as it matters.
    pub variables: Vec<(String, String)>,
}

impl Options {
    pub fn of(options: &PullOptions) -> Self {
        let RegistryOptions { tls_verify, certs_dirs, timing, .. } = options.registry.clone();
        let variable = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
        Self {
            platform: options.platform.clone(),
            parallel: options.parallel,
            signed_by: options.signed_by.clone(),
            tls_verify,
            certs_dirs,
            timing,
            variables: VARIABLES.iter().filter_map(variable).collect(),
        }
    }

    /// For a process that fetches nothing.
    pub fn none() -> Self {
        Self { variables: Vec::new(), ..Self::of(&PullOptions::default()) }
    }

    /// The same, without any way to credentials.
    pub fn into_pull(self) -> PullOptions {
        let Self { platform, parallel, signed_by, tls_verify, certs_dirs, timing, .. } = self;
        let mut options = PullOptions { platform, parallel, signed_by, ..PullOptions::default() };
        options.registry = RegistryOptions {
            tls_verify,
            keychain: images::auth::Keychain::default(),
            certs_dirs,
            timing,
            prepared: None,
        };
        options
    }
}

/// What a process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Something happened.
    Step(Step),
    /// It needs the credentials for its image; [`Reply`] follows.
    Credentials,
    /// Its last word.
    Done(Answer),
    /// Its last word, too.
    Failed { failure: Failure, text: String },
}

/// What it found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Fetched(Fetched),
    Loaded(Vec<Unnamed>),
    Unpacked,
}

/// What it is told about credentials.
pub(super) type Reply = Result<Option<Credentials>, String>;

/// [`Event`] with what it names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Step {
    Resolving { image: String },
    Resolved { manifest: Digest, layers: usize, bytes: u64 },
    LayerCached { digest: Digest },
    LayerWaiting { digest: Digest },
    LayerStarted { digest: Digest, size: u64, resumed_at: u64 },
    LayerBytes { digest: Digest, position: u64 },
    LayerDone { digest: Digest },
    Retrying { what: String, reason: String, attempt: u32 },
    RootfsBytes { position: u64 },
    RootfsDone { size: u64 },
}

impl Step {
    /// `None` for what only a directory brings.
    pub fn of(event: Event<'_>) -> Option<Self> {
        Some(match event {
            Event::Resolving { image } => Self::Resolving { image: image.to_owned() },
            Event::Resolved { manifest, layers, bytes } => {
                Self::Resolved { manifest: manifest.clone(), layers, bytes }
            }
            Event::LayerCached { digest } => Self::LayerCached { digest: digest.clone() },
            Event::LayerWaiting { digest } => Self::LayerWaiting { digest: digest.clone() },
            Event::LayerStarted { digest, size, resumed_at } => {
                Self::LayerStarted { digest: digest.clone(), size, resumed_at }
            }
            Event::LayerBytes { digest, position } => Self::LayerBytes { digest: digest.clone(), position },
            Event::LayerDone { digest } => Self::LayerDone { digest: digest.clone() },
            Event::Retrying { what, reason, attempt } => {
                Self::Retrying { what: what.to_owned(), reason: reason.to_owned(), attempt }
            }
            Event::RootfsBytes { position } => Self::RootfsBytes { position },
            Event::RootfsDone { size } => Self::RootfsDone { size },
            Event::RootfsUnreadable { .. } => return None,
        })
    }

    pub fn event(&self) -> Event<'_> {
        match self {
            Self::Resolving { image } => Event::Resolving { image },
            Self::Resolved { manifest, layers, bytes } => {
                Event::Resolved { manifest, layers: *layers, bytes: *bytes }
            }
            Self::LayerCached { digest } => Event::LayerCached { digest },
            Self::LayerWaiting { digest } => Event::LayerWaiting { digest },
            Self::LayerStarted { digest, size, resumed_at } => {
                Event::LayerStarted { digest, size: *size, resumed_at: *resumed_at }
            }
            Self::LayerBytes { digest, position } => Event::LayerBytes { digest, position: *position },
            Self::LayerDone { digest } => Event::LayerDone { digest },
            Self::Retrying { what, reason, attempt } => Event::Retrying { what, reason, attempt: *attempt },
            Self::RootfsBytes { position } => Event::RootfsBytes { position: *position },
            Self::RootfsDone { size } => Event::RootfsDone { size: *size },
        }
    }
}
