//! Credentials for registries, from the files of Docker and Podman and from credential helpers.
//!
//! The first of these files that has something for the registry decides:
//! `$REGISTRY_AUTH_FILE` (alone, if it is set), `$XDG_RUNTIME_DIR/containers/auth.json`,
//! `$XDG_CONFIG_HOME/containers/auth.json`, `$DOCKER_CONFIG/config.json` (default `~/.docker/config.json`).
//! Within a file: `credHelpers`, then `credsStore`, then `auths`. Nothing is ever written or logged.

mod file;
mod helper;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::reference::{DEFAULT_REGISTRY, Reference};

/// What a registry is given to know who asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credentials {
    /// User and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, to be exchanged for an access token.
    IdentityToken(String),
    /// A bearer token that is used as it is.
    RegistryToken(String),
}

/// Never shows a secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
            Self::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

/// Why credentials that should be there cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read the credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what Docker or Podman write.
    #[error("the credentials file {} is malformed", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, without the content.
        source: serde_json::Error,
    },
    /// An entry is not base64 of `user:password`.
    #[error("the credentials of {registry} in {} are malformed: log in again", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
    },
    /// The helper's name could be a path.
    #[error("\"{0}\" is not the name of a credential helper")]
    HelperName(String),
    /// The helper cannot be started.
    #[error("cannot run the credential helper docker-credential-{name}")]
    HelperRun {
        /// The helper.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The helper failed, hung or answered nonsense.
    #[error("the credential helper docker-credential-{name} {reason}")]
    HelperFailed {
        /// The helper.
        name: String,
        /// How.
        reason: String,
    },
    /// Whoever was asked for them could not say.
    #[error("{0}")]
    Asked(String),
}

/// Where to look for credentials.
#[derive(Clone, Debug, Default)]
pub struct Keychain {
    /// Who is asked instead of the files.
    pub owner: Option<Owner>,
    /// The files, the most important first. Those that do not exist are passed over.
    pub files: Vec<PathBuf>,
    /// Where credential helpers are looked for; `None` is `$PATH`.
    pub helper_path: Option<OsString>,
}

/// Somebody who knows credentials: another process, for one that may not look for itself.
#[derive(Clone)]
pub struct Owner(pub Arc<Ask>);

/// Gives the credentials for a reference, or says in words why it cannot.
pub type Ask = dyn Fn(&Reference) -> Result<Option<Credentials>, String> + Send + Sync;

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}

impl Keychain {
    /// The files that Docker and Podman use, by this process's environment.
    pub fn from_env() -> Self {
        let dir = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = dir("REGISTRY_AUTH_FILE") {
            return Self { files: vec![file], ..Self::default() };
        }
        let home = dir("HOME");
        let runtime = dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let config = dir("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
        let docker = dir("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let files = [
            runtime,
            config.map(|dir| dir.join("containers/auth.json")),
            docker.map(|dir| dir.join("config.json")),
        ];
        Self { files: files.into_iter().flatten().collect(), ..Self::default() }
    }

    /// The credentials for `reference`; `None` means to ask anonymously.
    pub fn find(&self, reference: &Reference) -> Result<Option<Credentials>, CredentialError> {
        if let Some(Owner(ask)) = &self.owner {
            return ask(reference).map_err(CredentialError::Asked);
        }
        for path in &self.files {
            let Some(file) = file::AuthFile::load(path)? else { continue };
            if let Some(name) = file.helper(reference.registry()) {
                let server = server_name(reference.registry());
                if let Some(found) = helper::find(name, server, self.helper_path.as_deref())? {
                    return Ok(Some(found));
                }
            }
            if let Some(found) = file.find(reference)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// What Docker calls a registry in its files and to its helpers.
fn server_name(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { "https://index.docker.io/v1/" } else { registry }
}
