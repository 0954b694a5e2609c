//! Who made an image: signatures in cosign's format, by a key that the user names (no certificates, no network but the
//! image's registry).
//!
//! ```text
//! image sha256:D ─► tag sha256-D.sig ─► manifest ─► layer, a payload (JSON) that names sha256:D
//!                                           └ annotation: ECDSA P-256 over the payload's bytes, DER in base64
//! ```
//!
//! The registry controls all of it but the key. See cosign's `specs/SIGNATURE_SPEC.md`.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::{BlobRef, ManifestError};
use crate::reference::Version;
use crate::registry::{Client, RegistryError};

/// Media type of a payload.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where a payload's signature is.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What a payload says that it is.
const KIND: &str = "cosign container image signature";
/// Signatures that are looked at. Stops a registry from keeping us busy.
const MAX_SIGNATURES: usize = 32;
/// Largest payload in bytes.
const MAX_PAYLOAD: u64 = 64 << 10;
/// Largest key file in bytes.
const MAX_KEY_FILE: u64 = 64 << 10;
/// DER of a P-256 public key (RFC 5480, section 2) up to its uncompressed point.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const POINT_BYTES: usize = 65;

/// A public key that signs images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub struct PublicKey {
    point: [u8; POINT_BYTES],
}

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{} is no public key of the curve P-256 in PEM, which begins with BEGIN PUBLIC KEY: `cosign \
         generate-key-pair` and `openssl ec -pubout` write such a file", path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
}

/// Why an image does not count as signed.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The registry has no signature of it.
    #[error("nobody has signed {digest}: the registry has no {tag}")]
    Unsigned {
        /// The image's manifest or index.
        digest: Digest,
        /// Where its signatures would be.
        tag: String,
    },
    /// None of its signatures is by this key and for this image.
    #[error("none of the {count} signatures of {digest} is right: {last}")]
    Invalid {
        /// The image's manifest or index.
        digest: Digest,
        /// How many were looked at.
        count: usize,
        /// What is wrong with the last one.
        last: String,
    },
    /// It is no image of a registry.
    #[error("only an image of a registry has signatures")]
    NoRegistry,
    /// It was never checked against this key, and the registry must not be asked.
    #[error("it was not pulled with this key, and --pull never forbids to ask the registry")]
    NotChecked,
    /// Between here and the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The list of signatures makes no sense.
    #[error("the list of signatures cannot be used")]
    Manifest(#[from] ManifestError),
    /// It is no list at all.
    #[error("the list of signatures cannot be used")]
    List(#[source] serde_json::Error),
}

impl From<PublicKey> for Vec<u8> {
    fn from(key: PublicKey) -> Self {
        key.point.to_vec()
    }
}

impl TryFrom<Vec<u8>> for PublicKey {
    type Error = &'static str;

    fn try_from(point: Vec<u8>) -> Result<Self, Self::Error> {
        Ok(Self { point: point.try_into().map_err(|_| "no point of the curve P-256")? })
    }
}

impl PublicKey {
    /// Reads a PEM file.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        let mut pem = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_KEY_FILE).read_to_end(&mut pem).map_err(failed)?;
        Self::parse(&pem).ok_or_else(|| KeyError::NotAKey { path: path.to_owned() })
    }

    /// From PEM; `None` where it is another kind of key, or none.
    pub fn parse(pem: &[u8]) -> Option<Self> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        let point = der.as_ref().strip_prefix(&P256_PREFIX)?.try_into().ok()?;
        Some(Self { point })
    }

    /// What tells the key from others, for the store.
    pub(crate) fn fingerprint(&self) -> Digest {
        Digest::of(&self.point)
    }

    fn has_signed(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point).verify(payload, signature).is_ok()
    }
}

/// The part of a manifest that matters.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    layers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What is signed.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Identity,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Identity {
    docker_manifest_digest: String,
}

/// Makes sure that `key` has signed the manifest or index `digest` of the client's repository.
pub(crate) fn check(client: &Client, digest: &Digest, key: &PublicKey) -> Result<(), SignatureError> {
    let tag = format!("{}-{}.sig", digest.algorithm().name(), digest.hex());
    let fetched = match client.manifest(&Version::Tag(tag.clone())) {
        Err(RegistryError::NotFound { .. }) => {
            return Err(SignatureError::Unsigned { digest: digest.clone(), tag });
        }
        other => other?,
    };
    let list: List = serde_json::from_slice(&fetched.bytes).map_err(SignatureError::List)?;
    let entries = list.layers.iter().filter(|entry| entry.media_type == PAYLOAD).take(MAX_SIGNATURES);
    let (mut count, mut last) = (0, "there is none".to_owned());
    for entry in entries {
        count += 1;
        match entry_is_right(client, entry, digest, key)? {
            Ok(()) => return Ok(()),
            Err(reason) => last = reason,
        }
    }
    Err(SignatureError::Invalid { digest: digest.clone(), count, last })
}

/// Whether one signature is right; the inner error says what is wrong with it.
fn entry_is_right(
    client: &Client,
    entry: &Entry,
    digest: &Digest,
    key: &PublicKey,
) -> Result<Result<(), String>, SignatureError> {
    if entry.size > MAX_PAYLOAD {
        return Ok(Err(format!("a payload of {} bytes", entry.size)));
    }
    let blob = match entry.digest.parse() {
        Ok(digest) => BlobRef { digest, size: entry.size, media_type: PAYLOAD.to_owned() },
        Err(error) => return Ok(Err(format!("its payload's digest: {error}"))),
    };
    let mut payload = Vec::new();
    let stream = client.blob(&blob, 0)?;
    let read = stream.reader.take(MAX_PAYLOAD).read_to_end(&mut payload);
    read.map_err(|source| client.interrupted(source))?;
    let signature = entry.annotations.get(SIGNATURE).and_then(|text| STANDARD.decode(text).ok());
    let Some(signature) = signature else { return Ok(Err(format!("no base64 in {SIGNATURE}"))) };
    Ok(verify(&payload, &signature, digest, key))
}

/// The signature first: nothing that is not signed is even parsed.
fn verify(payload: &[u8], signature: &[u8], digest: &Digest, key: &PublicKey) -> Result<(), String> {
    if !key.has_signed(payload, signature) {
        return Err("it is not by this key".to_owned());
    }
    let Payload { critical } =
        serde_json::from_slice(payload).map_err(|error| format!("its payload: {error}"))?;
    if critical.kind != KIND {
        return Err(format!("its payload is a {:?}", critical.kind.chars().take(100).collect::<String>()));
    }
    let named = critical.image.docker_manifest_digest;
    if named != digest.to_string() {
        return Err(format!("it is for {:?}", named.chars().take(200).collect::<String>()));
    }
    Ok(())
}
