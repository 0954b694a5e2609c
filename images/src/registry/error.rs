//! What can go wrong between this host and a registry.

use std::time::Duration;

use crate::digest::Digest;

/// A failed exchange with a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection.
    #[error("cannot reach registry {registry}: check its name, the network and any proxy")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What the connection said.
        source: Box<ureq::Error>,
    },
    /// The connection stood still or broke in the middle of an answer.
    #[error("the connection to registry {registry} broke off")]
    Interrupted {
        /// Host and port.
        registry: String,
        /// How.
        source: std::io::Error,
    },
    /// An answer ended before its end.
    #[error("registry {registry} sent {received} of {expected} bytes of {digest} and then stopped")]
    Truncated {
        /// Host and port.
        registry: String,
        /// The blob.
        digest: Digest,
        /// Bytes that came in all.
        received: u64,
        /// Bytes that the manifest says.
        expected: u64,
    },
    /// The certificate or the handshake is refused.
    #[error(
        "registry {registry} has no TLS that can be trusted: put its CA into /etc/docker/certs.d/{registry}/ca.crt, \
         or pass --tls-verify=false if you trust the network"
    )]
    Tls {
        /// Host and port.
        registry: String,
        /// What TLS said.
        source: Box<ureq::Error>,
    },
    /// A certificate file of this host cannot be used.
    #[error("cannot use the certificates in {path}: {reason}")]
    Certificates {
        /// The file or directory.
        path: String,
        /// Why.
        reason: String,
    },
    /// The registry wants to know who asks, or does not like the answer.
    #[error("registry {registry} refuses access to {repository}: {detail}")]
    Unauthorized {
        /// Host and port.
        registry: String,
        /// The repository.
        repository: String,
        /// What it said, and what to do.
        detail: String,
    },
    /// There is no such repository, tag or digest.
    #[error("no image {image}: registry {registry} knows no such repository, tag or digest ({detail})")]
    NotFound {
        /// The reference.
        image: String,
        /// Host and port.
        registry: String,
        /// What it said.
        detail: String,
    },
    /// Too many requests.
    #[error("registry {registry} limits the number of requests: {detail}; log in or try again later")]
    RateLimited {
        /// Host and port.
        registry: String,
        /// What it said.
        detail: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status that is no success.
    #[error("registry {registry} answered {status} to a request for {what}: {detail}")]
    Status {
        /// Host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// The answer breaks the protocol.
    #[error("registry {registry} broke the protocol: {reason}")]
    Protocol {
        /// Host and port.
        registry: String,
        /// How.
        reason: String,
    },
    /// The manifest is not the one that was asked for.
    #[error(
        "the manifest of {image} has digest {actual} instead of {expected}: it was damaged or tampered with"
    )]
    ManifestMismatch {
        /// The reference.
        image: String,
        /// What was asked for, or what the registry's header says.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
}

impl RegistryError {
    /// Whether trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !matches!(**source, ureq::Error::HostNotFound),
            Self::Interrupted { .. } | Self::Truncated { .. } => true,
            Self::RateLimited { retry_after, .. } => {
                retry_after.is_none_or(|after| after <= super::MAX_RETRY_AFTER)
            }
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the registry does not know of an upload what the client knows of it, or not of it at all.
    pub(crate) fn is_forgotten(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Status { status: 416, .. })
    }

    /// How long the registry asks to wait before the next attempt.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
