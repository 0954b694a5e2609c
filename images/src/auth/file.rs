//! The file `config.json` of Docker and `auth.json` of Podman.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{CredentialError, Credentials, server_name};
use crate::reference::Reference;

/// A credentials file is small; this stops a mistaken path from filling the memory.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A parsed credentials file.
#[derive(Debug)]
pub(super) struct AuthFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Never shows a secret.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

impl AuthFile {
    /// Reads the file; `None` if there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, CredentialError> {
        let failed = |source| CredentialError::Read { path: path.to_owned(), source };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let content = serde_json::from_slice(&bytes)
            .map_err(|source| CredentialError::Parse { path: path.to_owned(), source })?;
        Ok(Some(Self { path: path.to_owned(), content }))
    }

    /// The credential helper that this file names for `registry`.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let own =
            self.content.cred_helpers.iter().find(|(key, _)| host_of(key) == host_of(server_name(registry)));
        let own = own.or_else(|| self.content.cred_helpers.get_key_value(registry));
        own.map(|(_, helper)| helper).or(self.content.creds_store.as_ref()).map(String::as_str)
    }

    /// The credentials written in this file: for the repository, else the namespaces above it, else the registry.
    pub(super) fn find(&self, reference: &Reference) -> Result<Option<Credentials>, CredentialError> {
        let mut scope = format!("{}/{}", reference.registry(), reference.repository());
        loop {
            if let Some(entry) = self.content.auths.get(&scope) {
                return self.credentials(entry, reference);
            }
            match scope.rfind('/') {
                Some(slash) => scope.truncate(slash),
                None => break,
            }
        }
        let host = host_of(server_name(reference.registry()));
        match self.content.auths.iter().find(|(key, _)| is_whole_host(key) && host_of(key) == host) {
            Some((_, entry)) => self.credentials(entry, reference),
            None => Ok(None),
        }
    }

    fn credentials(
        &self,
        entry: &Entry,
        reference: &Reference,
    ) -> Result<Option<Credentials>, CredentialError> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&entry.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        if let Some(token) = filled(&entry.registrytoken) {
            return Ok(Some(Credentials::RegistryToken(token)));
        }
        if let Some(auth) = filled(&entry.auth) {
            let malformed = || CredentialError::Entry {
                path: self.path.clone(),
                registry: reference.registry().to_owned(),
            };
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| malformed())?;
            let text = String::from_utf8(bytes).map_err(|_| malformed())?;
            let (username, password) = text.split_once(':').ok_or_else(malformed)?;
            // Old versions of Docker pad the password with NUL.
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Credentials::Basic { username: username.to_owned(), password }));
        }
        let pair = filled(&entry.username).zip(entry.password.clone());
        Ok(pair.map(|(username, password)| Credentials::Basic { username, password }))
    }
}

/// The host of a key as Docker writes it: `https://index.docker.io/v1/`, `host:5000`.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = rest.split('/').next().unwrap_or(rest);
    if host == "docker.io" { "index.docker.io" } else { host }
}

/// Whether a key means all of a registry: no path, or only an API version.
fn is_whole_host(key: &str) -> bool {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match rest.split_once('/') {
        None => true,
        Some((_, path)) => matches!(path.trim_end_matches('/'), "" | "v1" | "v2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(json: &str) -> AuthFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        AuthFile::load(file.path()).unwrap().unwrap()
    }

    fn find(json: &str, reference: &str) -> Option<Credentials> {
        load(json).find(&reference.parse().unwrap()).unwrap()
    }

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic { username: username.into(), password: password.into() })
    }

    #[test]
    fn credentials_are_found_under_the_keys_of_docker() {
        // "u:p:x" in base64: the password may hold a colon.
        let auth = r#"{"auth":"dTpwOng="}"#;
        for (key, reference) in [
            ("https://index.docker.io/v1/", "alpine"),
            ("docker.io", "user/app"),
            ("host:5000", "host:5000/a/b"),
            ("https://host:5000", "host:5000/a"),
            ("http://host:5000/v2/", "host:5000/a"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{auth}}}}}"#);
            assert_eq!(find(&json, reference), basic("u", "p:x"), "{key}");
            assert_eq!(find(&json, "elsewhere.org/a"), None);
        }
    }

    #[test]
    fn the_longest_namespace_of_podman_wins() {
        let json = r#"{"auths":{"h:1":{"username":"host","password":"p"},
            "h:1/team":{"username":"team","password":"p"}, "h:1/team/app":{"username":"app","password":"p"}}}"#;
        assert_eq!(find(json, "h:1/team/app"), basic("app", "p"));
        assert_eq!(find(json, "h:1/team/other"), basic("team", "p"));
        assert_eq!(find(json, "h:1/teams"), basic("host", "p"));
    }

    #[test]
    fn tokens_are_read() {
        let json =
            r#"{"auths":{"a.b":{"auth":"dTpw","identitytoken":"T"},"c.d":{"registrytoken":"R"},"e.f":{}}}"#;
        assert_eq!(find(json, "a.b/x"), Some(Credentials::IdentityToken("T".into())));
        assert_eq!(find(json, "c.d/x"), Some(Credentials::RegistryToken("R".into())));
        assert_eq!(find(json, "e.f/x"), None);
    }

    #[test]
    fn a_malformed_entry_is_an_error_without_the_secret() {
        for auth in ["%%%", "bm9jb2xvbg==", "/////w=="] {
            let file = load(&format!(r#"{{"auths":{{"a.b":{{"auth":"{auth}"}}}}}}"#));
            let error = file.find(&"a.b/x".parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains("a.b") && !error.contains(auth), "{error}");
        }
    }

    #[test]
    fn the_helper_of_a_registry_wins_over_the_store_of_all() {
        let file = load(r#"{"credsStore":"all","credHelpers":{"h:1":"one"}}"#);
        assert_eq!(file.helper("h:1"), Some("one"));
        assert_eq!(file.helper("other.org"), Some("all"));
        assert_eq!(load("{}").helper("h:1"), None);
    }

    #[test]
    fn a_missing_or_empty_file_is_no_error() {
        assert!(AuthFile::load(Path::new("/nonexistent/config.json")).unwrap().is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(AuthFile::load(file.path()).unwrap().is_none());
    }
}
