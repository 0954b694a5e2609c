//! A client for one repository of a registry: manifests and blobs, read and (`upload`) written (OCI
//! distribution-spec v1.1).
//!
//! ```text
//! request ─► 401 ─► challenge ─► token ─► request ─► 307 ─► another server (gets no Authorization) ─► bytes
//! ```
//!
//! Blocking, one connection a thread. A connection that stands still is given up ([`Timing::stall`]); retrying is the
//! caller's business, [`RegistryError::is_transient`] says when it makes sense.

mod challenge;
mod error;
pub(crate) mod tls;
mod token;
mod upload;
mod url;

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use challenge::Challenge;
pub use error::RegistryError;
use serde::{Deserialize, Serialize};
pub(crate) use upload::Upload;
use ureq::http::{HeaderMap, Method, Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, AsSendBody, Body, SendBody};

use crate::auth::{CredentialError, Credentials, Keychain};
use crate::digest::{Digest, Hasher};
use crate::manifest::{BlobRef, MANIFEST_MEDIA_TYPES, MAX_MANIFEST_BYTES};
use crate::reference::{Reference, Version};

/// More hops than any storage behind a registry needs; stops a registry that redirects for ever.
const MAX_REDIRECTS: usize = 5;

/// The most of an error's body that is read.
const MAX_ERROR_BYTES: u64 = 16 << 10;

/// The longest wait that a registry may ask for before the next attempt.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How much longer than [`Timing::stall`] a registry may take to answer when it stores what it was sent.
const STORE_PATIENCE: u32 = 10;

/// How to talk to registries.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Verify certificates and insist on HTTPS (but for loopback). Without, anything goes, for any host.
    pub tls_verify: bool,
    /// Where credentials are.
    pub keychain: Keychain,
    /// Where `HOST[:PORT]/*.crt` are looked for.
    pub certs_dirs: Vec<PathBuf>,
    /// When to give up.
    pub timing: Timing,
    /// What [`RegistryOptions::prepare`] found.
    pub prepared: Option<Prepared>,
}

/// Certificates for one registry, read beforehand.
#[derive(Clone, Debug)]
pub struct Prepared {
    registry: String,
    tls: TlsConfig,
}

impl RegistryOptions {
    /// Reads everything that a connection to `registry` needs of this host, while it may be read.
    pub fn prepare(&mut self, registry: &str) -> Result<(), RegistryError> {
        let tls = tls::config(registry, &self.certs_dirs, self.tls_verify)?;
        self.prepared = Some(Prepared { registry: registry.to_owned(), tls });
        Ok(())
    }

    fn tls(&self, registry: &str) -> Result<TlsConfig, RegistryError> {
        match &self.prepared {
            Some(prepared) if prepared.registry == registry => Ok(prepared.tls.clone()),
            _ => tls::config(registry, &self.certs_dirs, self.tls_verify),
        }
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            tls_verify: true,
            keychain: Keychain::from_env(),
            certs_dirs: tls::default_certs_dirs(),
            timing: Timing::default(),
            prepared: None,
        }
    }
}

/// When to give up on a registry.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// For a connection, its TLS handshake included.
    pub connect: Duration,
    /// For the next byte of an answer.
    pub stall: Duration,
    /// How often one thing is tried without any progress.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each further one.
    pub backoff: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(250),
        }
    }
}

/// A manifest or an index as the registry gave it.
#[derive(Debug)]
pub struct Fetched {
    /// Verified if the version was a digest.
    pub digest: Digest,
    /// At most [`MAX_MANIFEST_BYTES`].
    pub bytes: Vec<u8>,
}

/// A blob's bytes on their way.
pub struct BlobStream {
    /// Where in the blob the first byte belongs: what was asked for, or 0.
    pub offset: u64,
    /// The bytes. May end early; the caller counts.
    pub reader: Box<dyn Read + Send>,
}

/// What a client may do in its repository. A token is asked for no more than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Pull,
    /// Read and write.
    Push {
        /// Another repository of the registry, whose blobs are taken over instead of sent.
        mount_from: Option<String>,
    },
}

/// A request that can be sent again after a challenge or a redirect.
struct Request<'a> {
    method: &'a Method,
    headers: &'a [(&'a str, String)],
    body: Content<'a>,
    /// What errors call it.
    what: &'a str,
}

/// Gives the bytes of a request's body, from their beginning, each time it is called.
type OpenBody<'a> = &'a dyn Fn() -> std::io::Result<Box<dyn Read + 'a>>;

/// The body of a request.
#[derive(Clone, Copy)]
enum Content<'a> {
    /// None at all.
    Empty,
    /// A small one.
    Bytes(&'a [u8]),
    /// Bytes that are read while they are sent.
    Part { open: OpenBody<'a>, length: u64 },
}

impl Content<'_> {
    fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => None,
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Part { length, .. } => Some(*length),
        }
    }
}

/// A client for one repository. Used by several threads at once.
pub struct Client {
    agent: Agent,
    registry: String,
    repository: String,
    image: String,
    /// `SCHEME://HOST[:PORT]`.
    base: Uri,
    plain_http_allowed: bool,
    /// What a registry may take to store a blob that it got whole.
    store_timeout: Duration,
    keychain: Keychain,
    reference: Reference,
    access: Access,
    /// Looked up when the registry first asks, because a helper may bother the user.
    credentials: OnceLock<Result<Option<Credentials>, CredentialError>>,
    authorization: Mutex<Option<String>>,
}

impl Client {
    /// Connects to the registry of `reference`; finds out about HTTPS only where plain HTTP is allowed too.
    pub fn connect(
        reference: &Reference,
        access: Access,
        options: &RegistryOptions,
    ) -> Result<Self, RegistryError> {
        let registry = reference.registry().to_owned();
        let loopback = url::is_loopback(&registry);
        let host = url::endpoint(reference.registry());
        let tls = options.tls(&registry)?;
        let timing = options.timing;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lighter/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .timeout_connect(Some(timing.connect))
            .timeout_per_read(Some(timing.stall))
            .timeout_per_write(Some(timing.stall))
            .timeout_recv_response(Some(timing.stall));
        if loopback {
            config = config.proxy(None);
        }
        let https = format!("https://{host}");
        let mut client = Self {
            agent: config.build().new_agent(),
            base: https.parse().map_err(|_| bad_host(&registry))?,
            repository: reference.repository().to_owned(),
            image: reference.familiar(),
            plain_http_allowed: loopback || !options.tls_verify,
            store_timeout: timing.stall.saturating_mul(STORE_PATIENCE),
            keychain: options.keychain.clone(),
            reference: reference.clone(),
            access,
            credentials: OnceLock::new(),
            authorization: Mutex::new(None),
            registry,
        };
        if client.plain_http_allowed && !client.speaks_https()? {
            client.base = format!("http://{host}").parse().map_err(|_| bad_host(&client.registry))?;
        }
        Ok(client)
    }

    /// The registry's name, for errors.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// What the registry calls the version of a tag now, without its manifest; `None` if it does not say.
    pub fn manifest_digest(&self, version: &Version) -> Result<Option<Digest>, RegistryError> {
        let uri = self.manifest_uri(version)?;
        let response = self.request(&Method::HEAD, &uri, &accept_manifests(), "the manifest")?;
        Ok(content_digest(response.headers()))
    }

    /// The manifest or index of a version.
    pub fn manifest(&self, version: &Version) -> Result<Fetched, RegistryError> {
        let uri = self.manifest_uri(version)?;
        let mut response = self.request(&Method::GET, &uri, &accept_manifests(), "the manifest")?;
        let mut bytes = Vec::new();
        let limit = MAX_MANIFEST_BYTES + 1;
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader().take(limit);
        reader.read_to_end(&mut bytes).map_err(|source| self.interrupted(source))?;
        if bytes.len() as u64 == limit {
            return Err(self.protocol(&format!("its manifest is larger than {MAX_MANIFEST_BYTES} bytes")));
        }
        let expected = match version {
            Version::Digest(digest) => Some(digest.clone()),
            Version::Tag(_) => content_digest(response.headers()),
        };
        let Some(expected) = expected else { return Ok(Fetched { digest: Digest::of(&bytes), bytes }) };
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != expected {
            return Err(RegistryError::ManifestMismatch { image: self.image.clone(), expected, actual });
        }
        Ok(Fetched { digest: actual, bytes })
    }

    /// The bytes of a blob from `offset` on. The registry may ignore the offset: see [`BlobStream::offset`].
    pub fn blob(&self, blob: &BlobRef, offset: u64) -> Result<BlobStream, RegistryError> {
        let uri = self.uri(&format!("blobs/{}", blob.digest))?;
        let mut headers = Vec::new();
        if offset > 0 {
            headers.push(("range", format!("bytes={offset}-")));
        }
        let response = self.request(&Method::GET, &uri, &headers, &format!("layer {}", blob.digest))?;
        let begins_at = match response.status().as_u16() {
            206 => range_start(response.headers()),
            // The rest that was asked for does not exist: what is here cannot be right.
            416 => return self.blob(blob, 0),
            _ => Some(0),
        };
        let begins_at = begins_at.filter(|start| *start == 0 || *start == offset);
        let offset =
            begins_at.ok_or_else(|| self.protocol("it sent another part of a layer than was asked for"))?;
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(BlobStream { offset, reader: Box::new(reader) })
    }

    /// Whether the registry speaks HTTPS; an error if it speaks nothing at all.
    fn speaks_https(&self) -> Result<bool, RegistryError> {
        match self.agent.get(format!("{}v2/", self.base)).call() {
            Ok(_) => Ok(true),
            Err(ureq::Error::Timeout(timeout)) => Err(self.failed(ureq::Error::Timeout(timeout))),
            Err(ureq::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Err(self.failed(ureq::Error::Io(error)))
            }
            Err(error @ ureq::Error::HostNotFound) => Err(self.failed(error)),
            Err(error) if is_bad_certificate(&error) => Err(self.failed(error)),
            // Anything else is what a server of plain HTTP makes of a TLS handshake.
            Err(_) => Ok(false),
        }
    }

    /// Sends a request without a body; returns a success, or 416.
    fn request(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[(&str, String)],
        what: &str,
    ) -> Result<Response<Body>, RegistryError> {
        self.exchange(&Request { method, headers, body: Content::Empty, what }, uri)
    }

    /// Sends a request, answers a challenge once, follows redirects. Returns a success, or 416.
    fn exchange(&self, request: &Request<'_>, uri: &Uri) -> Result<Response<Body>, RegistryError> {
        let mut uri = uri.clone();
        let mut challenged = false;
        let mut redirects = 0;
        loop {
            let trusted = url::same_origin(&uri, &self.base);
            let authorization = if trusted { self.authorization() } else { None };
            let mut response = self.send(request, &uri, authorization.as_deref())?;
            match response.status().as_u16() {
                200..=299 | 416 => return Ok(response),
                301 | 302 | 303 | 307 | 308 if redirects < MAX_REDIRECTS => {
                    uri = self.redirect(&uri, response.headers())?;
                    redirects += 1;
                }
                301 | 302 | 303 | 307 | 308 => return Err(self.protocol("it redirects for ever")),
                401 if trusted && !challenged => {
                    challenged = true;
                    self.authorize(response.headers(), authorization)?;
                }
                401 | 403 => {
                    let detail = detail(&mut response);
                    return Err(self.unauthorized(&detail));
                }
                404 => {
                    let detail = detail(&mut response);
                    let (image, registry) = (self.image.clone(), self.registry.clone());
                    return Err(RegistryError::NotFound { image, registry, detail });
                }
                429 => {
                    let retry_after = header(response.headers(), "retry-after");
                    let retry_after =
                        retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
                    let detail = detail(&mut response);
                    let registry = self.registry.clone();
                    return Err(RegistryError::RateLimited { registry, detail, retry_after });
                }
                _ => return Err(self.status_error(request.what, &mut response)),
            }
        }
    }

    fn send(
        &self,
        request: &Request<'_>,
        uri: &Uri,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut builder = ureq::http::Request::builder().method(request.method).uri(uri);
        for (name, value) in request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(value) = authorization {
            builder = builder.header("authorization", value);
        }
        if let Some(length) = request.body.length() {
            builder = builder.header("content-length", length);
        }
        let unusable = |_| self.protocol("its address makes no request");
        let sent = match request.body {
            Content::Empty => self.agent.run(builder.body(()).map_err(unusable)?),
            Content::Bytes(bytes) => self.writing(builder.body(bytes).map_err(unusable)?),
            Content::Part { open, .. } => {
                let mut reader = open().map_err(|source| self.interrupted(source))?;
                self.writing(builder.body(SendBody::from_reader(&mut *reader)).map_err(unusable)?)
            }
        };
        sent.map_err(|error| self.failed(error))
    }

    /// Sends what the registry has to store before it answers.
    fn writing(&self, request: ureq::http::Request<impl AsSendBody>) -> Result<Response<Body>, ureq::Error> {
        let request = self.agent.configure_request(request).timeout_recv_response(Some(self.store_timeout));
        self.agent.run(request.build())
    }

    /// Gets a new authorization, unless another thread has since `used` was sent.
    fn authorize(&self, headers: &HeaderMap, used: Option<String>) -> Result<(), RegistryError> {
        let mut current = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != used {
            return Ok(());
        }
        let values = headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
        let challenge = Challenge::parse(values)
            .ok_or_else(|| self.unauthorized("it asks for a login in a way that is not known here"))?;
        *current = Some(self.answer(&challenge)?);
        Ok(())
    }

    fn redirect(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri, RegistryError> {
        let location = header(headers, "location").and_then(|location| url::resolve(from, location));
        let target = location.ok_or_else(|| self.protocol("it redirects to nowhere"))?;
        if target.scheme_str() == Some("http") && !self.plain_http_allowed {
            return Err(self.protocol("it redirects from HTTPS to plain HTTP"));
        }
        Ok(target)
    }

    fn credentials(&self) -> &Result<Option<Credentials>, CredentialError> {
        self.credentials.get_or_init(|| self.keychain.find(&self.reference))
    }

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn manifest_uri(&self, version: &Version) -> Result<Uri, RegistryError> {
        match version {
            Version::Tag(tag) => self.uri(&format!("manifests/{tag}")),
            Version::Digest(digest) => self.uri(&format!("manifests/{digest}")),
        }
    }

    fn uri(&self, rest: &str) -> Result<Uri, RegistryError> {
        let text = format!("{}v2/{}/{rest}", self.base, self.repository);
        text.parse().map_err(|_| self.protocol("its address makes no URL"))
    }

    fn failed(&self, error: ureq::Error) -> RegistryError {
        let (registry, source) = (self.registry.clone(), Box::new(error));
        match *source {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => {
                RegistryError::Tls { registry, source }
            }
            // rustls reports a refused certificate as an I/O error.
            ureq::Error::Io(ref io) if io.kind() == std::io::ErrorKind::InvalidData => {
                RegistryError::Tls { registry, source }
            }
            _ => RegistryError::Unreachable { registry, source },
        }
    }

    pub(crate) fn interrupted(&self, source: std::io::Error) -> RegistryError {
        RegistryError::Interrupted { registry: self.registry.clone(), source }
    }

    fn protocol(&self, reason: &str) -> RegistryError {
        RegistryError::Protocol { registry: self.registry.clone(), reason: reason.to_owned() }
    }

    fn status_error(&self, what: &str, response: &mut Response<Body>) -> RegistryError {
        let status = response.status().as_u16();
        let (registry, what) = (self.registry.clone(), what.to_owned());
        RegistryError::Status { registry, what, status, detail: detail(response) }
    }

    fn unauthorized(&self, detail: &str) -> RegistryError {
        let fix = match self.credentials() {
            Ok(None) => format!(
                "no credentials were sent; if the image exists it is private: `docker login {0}` or `podman login {0}`",
                self.registry
            ),
            Ok(Some(_)) => {
                "the stored credentials do not permit it: check the name, or log in again".to_owned()
            }
            Err(error) => error.to_string(),
        };
        RegistryError::Unauthorized {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            detail: format!("{detail} ({fix})"),
        }
    }
}

/// Whether a TLS server was found, but not the one to trust.
fn is_bad_certificate(error: &ureq::Error) -> bool {
    let tls = match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

fn bad_host(registry: &str) -> RegistryError {
    RegistryError::Protocol { registry: registry.to_owned(), reason: "its name makes no URL".to_owned() }
}

fn accept_manifests() -> Vec<(&'static str, String)> {
    vec![("accept", MANIFEST_MEDIA_TYPES.join(", "))]
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    header(headers, "docker-content-digest")?.parse().ok()
}

/// The first byte's position by `Content-Range: bytes FIRST-LAST/SIZE`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-range")?.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// What an error's body says, in one printable line.
fn detail(response: &mut Response<Body>) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Option<Vec<One>>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let mut bytes = Vec::new();
    let reader = response.body_mut().as_reader();
    // A body that breaks off is still the best explanation there is.
    let _ = reader.take(MAX_ERROR_BYTES).read_to_end(&mut bytes);
    let text = match serde_json::from_slice::<Errors>(&bytes) {
        Ok(Errors { errors: Some(errors), .. }) => {
            let texts = errors.into_iter().filter_map(|one| one.message.or(one.code));
            texts.collect::<Vec<_>>().join("; ")
        }
        Ok(Errors { details: Some(details), .. }) => details,
        _ => String::new(),
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
    if text.is_empty() { format!("status {}", response.status().as_u16()) } else { text }
}
