//! Whom to trust: the host's certificates, and those in `certs.d` for one registry.
//!
//! `CERTS_D/HOST[:PORT]/*.crt` are certificate authorities; `NAME.cert` with `NAME.key` identifies this client.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::RegistryError;

/// The directories of Docker and Podman.
pub(super) fn default_certs_dirs() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/containers/certs.d"));
    let system = ["/etc/docker/certs.d", "/etc/containers/certs.d"].map(PathBuf::from);
    home.into_iter().chain(system).collect()
}

/// The TLS configuration for `registry`. Without `verify` any certificate is accepted.
pub(super) fn config(
    registry: &str,
    certs_dirs: &[PathBuf],
    verify: bool,
) -> Result<TlsConfig, RegistryError> {
    let mut builder = TlsConfig::builder().disable_verification(!verify);
    let mut roots = if verify { host_roots() } else { Vec::new() };
    for dir in certs_dirs.iter().map(|dir| dir.join(registry)) {
        let own = RegistryDir::load(&dir)?;
        roots.extend(own.authorities);
        if own.client.is_some() {
            builder = builder.client_cert(own.client);
        }
    }
    Ok(builder.root_certs(self::roots(roots)).build())
}

/// The TLS configuration for what is no registry.
pub(crate) fn of_host() -> TlsConfig {
    TlsConfig::builder().root_certs(roots(host_roots())).build()
}

/// On a host without certificates the ones compiled in (Mozilla's list) are better than none.
fn roots(found: Vec<Certificate<'static>>) -> RootCerts {
    if found.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&found) }
}

/// The certificate authorities of the host (`SSL_CERT_FILE`, `SSL_CERT_DIR` or the distribution's bundle).
fn host_roots() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs();
    found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

#[derive(Default)]
struct RegistryDir {
    authorities: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

impl RegistryDir {
    fn load(dir: &Path) -> Result<Self, RegistryError> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Self::default()) };
        let mut found = Self::default();
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => found.authorities.extend(certificates(&path)?),
                Some("cert") => found.client = Some(client(&path)?),
                _ => {}
            }
        }
        Ok(found)
    }
}

fn client(path: &Path) -> Result<ClientCert, RegistryError> {
    let key_path = path.with_extension("key");
    let key = std::fs::read(&key_path).map_err(|error| unusable(&key_path, &error))?;
    let key = PrivateKey::from_pem(&key).map_err(|error| unusable(&key_path, &error))?;
    Ok(ClientCert::new_with_certs(&certificates(path)?, key))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let own = |certificate: CertificateDer<'_>| Certificate::from_der(&certificate).to_owned();
    CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.map(|certificate| certificate.map(own)).collect())
        .map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Certificates { path: path.display().to_string(), reason: error.to_string() }
}
