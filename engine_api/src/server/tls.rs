//! Mutual TLS: the only way in from another host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Files for mutual TLS, PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The server's certificate, then those that vouch for it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who vouches for clients.
    pub client_ca: PathBuf,
}

/// TLS cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {} for TLS: {why}", path.display())]
pub struct TlsError {
    path: PathBuf,
    why: String,
}

impl Tls {
    /// What takes connections. Clients without a certificate of `client_ca` are refused.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let bad = |path: &Path| {
            let path = path.to_owned();
            move |error: String| TlsError { path, why: error }
        };
        let certificates = certificates(&self.certificate)?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| bad(&self.key)(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in self::certificates(&self.client_ca)? {
            roots.add(certificate).map_err(|error| bad(&self.client_ca)(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| bad(&self.client_ca)(error.to_string()))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_client_cert_verifier(clients).with_single_cert(certificates, key))
            .map_err(|error| bad(&self.certificate)(error.to_string()))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |why: String| TlsError { path: path.to_owned(), why };
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(bad("it has no certificate".to_owned())),
        Ok(all) => Ok(all),
        Err(error) => Err(bad(error.to_string())),
    }
}
