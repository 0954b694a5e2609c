//! The token dance: a registry says where tokens are to be had, and for how long nobody asks again.
//!
//! distribution-spec and `docs/spec/auth/token.md` of distribution. Tokens are asked for what the client is there for
//! ([`Access`]), never for what the registry's challenge says: a hostile registry could ask for more.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::challenge::Challenge;
use super::{Access, Client, RegistryError, url};
use crate::auth::Credentials;

/// The largest answer of a token server; real tokens have a few kilobytes.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// The value of `Authorization` that answers `challenge`.
    pub(super) fn answer(&self, challenge: &Challenge) -> Result<String, RegistryError> {
        let credentials = match self.credentials() {
            Ok(credentials) => credentials.as_ref(),
            // Public images need no credentials; if this one does, the refusal says why there are none.
            Err(_) => None,
        };
        match (challenge, credentials) {
            (_, Some(Credentials::RegistryToken(token))) => Ok(format!("Bearer {token}")),
            (Challenge::Basic, Some(Credentials::Basic { username, password })) => {
                Ok(basic(username, password))
            }
            (Challenge::Basic, _) => Err(self.unauthorized("user and password are needed")),
            (Challenge::Bearer { realm, service }, credentials) => {
                self.fetch_token(realm, service.as_deref(), credentials)
            }
        }
    }

    fn fetch_token(
        &self,
        realm: &str,
        service: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<String, RegistryError> {
        let uri = url::resolve(&self.base, realm)
            .ok_or_else(|| self.protocol("its token server's address is no URL"))?;
        if uri.scheme_str() == Some("http") && !self.plain_http_allowed {
            return Err(self.protocol("its token server is not on HTTPS"));
        }
        let service = service.map(|service| format!("service={}&", url::encode(service))).unwrap_or_default();
        let scopes = self.access.scopes(&self.repository);
        let query: Vec<String> = scopes.iter().map(|scope| format!("scope={}", url::encode(scope))).collect();
        let query = service.clone() + &query.join("&");
        let sent = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                // Here scopes are one value (RFC 6749 section 3.3); below each is a parameter of its own.
                let form = format!(
                    "grant_type=refresh_token&client_id=lighter&refresh_token={}&{service}scope={}",
                    url::encode(token),
                    url::encode(&scopes.join(" "))
                );
                self.agent.post(uri).content_type("application/x-www-form-urlencoded").send(form)
            }
            Some(Credentials::Basic { username, password }) => self
                .agent
                .get(url::with_query(&uri, &query))
                .header("authorization", basic(username, password))
                .call(),
            Some(Credentials::RegistryToken(_)) | None => {
                self.agent.get(url::with_query(&uri, &query)).call()
            }
        };
        let mut response = sent.map_err(|error| self.failed(error))?;
        match response.status().as_u16() {
            200 => {}
            400 | 401 | 403 => {
                let detail = super::detail(&mut response);
                return Err(self.unauthorized(&format!("its token server says {detail}")));
            }
            _ => return Err(self.status_error("a token", &mut response)),
        }
        let body = response.body_mut().with_config().limit(MAX_TOKEN_BYTES).read_to_vec();
        let body = body.map_err(|error| self.failed(error))?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| self.protocol("its token server answered without a token"))?;
        let token = answer.token.or(answer.access_token).filter(|token| is_token(token));
        let token = token.ok_or_else(|| self.protocol("its token server answered without a token"))?;
        Ok(format!("Bearer {token}"))
    }
}

impl Access {
    fn scopes(&self, repository: &str) -> Vec<String> {
        match self {
            Self::Pull => vec![format!("repository:{repository}:pull")],
            Self::Push { mount_from } => {
                let own = format!("repository:{repository}:pull,push");
                let other = mount_from.iter().map(|other| format!("repository:{other}:pull"));
                std::iter::once(own).chain(other).collect()
            }
        }
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Whether a token can stand in a header.
fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())
}
