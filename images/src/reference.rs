//! Image references, by the grammar of `distribution/reference`.
//!
//! ```text
//! reference   := name [ ":" tag ] [ "@" digest ]
//! name        := [ host [ ":" port ] "/" ] component { "/" component }
//! component   := alphanum { separator alphanum }       separator := "." | "_" | "__" | "-"+
//! tag         := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}
//! ```
//!
//! The first component is a host only if it has a dot, a colon or an upper-case letter, or is `localhost`. Without a
//! host the name is on `docker.io`, and there a name of one component is below `library/`. With tag and digest both,
//! the digest decides.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// The tag of references that have neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// The longest name (host and path), as the grammar says.
const MAX_NAME_LEN: usize = 255;

/// The longest tag, as the grammar says.
const MAX_TAG_LEN: usize = 128;

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was written.
    #[error("an image reference is empty: write for example alpine, alpine:3.20 or 127.0.0.1:5000/app:1.0")]
    Empty,
    /// The name is longer than registries accept.
    #[error("image reference with a name of {0} characters: at most {MAX_NAME_LEN} are allowed")]
    TooLong(usize),
    /// The path has upper-case letters.
    #[error("image reference \"{0}\": the repository name must be in lower case")]
    UpperCase(String),
    /// The registry's host or port is malformed.
    #[error("image reference \"{text}\": \"{host}\" is not a registry host (and port)")]
    Host {
        /// The reference.
        text: String,
        /// The host in it.
        host: String,
    },
    /// A component of the path is malformed.
    #[error(
        "image reference \"{text}\": \"{component}\" is not a path component (lower-case letters and digits, \
         separated by one of . _ __ or dashes)"
    )]
    Component {
        /// The reference.
        text: String,
        /// The component in it.
        component: String,
    },
    /// The tag is malformed.
    #[error(
        "image reference \"{text}\": \"{tag}\" is not a tag (letters, digits, _ . -, at most {MAX_TAG_LEN})"
    )]
    Tag {
        /// The reference.
        text: String,
        /// The tag in it.
        tag: String,
    },
    /// The digest is malformed.
    #[error("image reference \"{text}\"")]
    Digest {
        /// The reference.
        text: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
}

/// Which version of a repository a reference means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// What the registry holds under this tag at the moment.
    Tag(String),
    /// Exactly this manifest or index.
    Digest(Digest),
}

/// A parsed, normalized reference to an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

impl Reference {
    /// The registry's host, with its port if one was given: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path on the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What to ask the registry for: the digest if there is one, else the tag, else `latest`.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The form people type: without `docker.io/library/`.
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        let Some(rest) = text.strip_prefix("docker.io/") else { return text };
        match rest.strip_prefix("library/") {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => rest.to_owned(),
        }
    }
}

/// The normalized form: host, path, and the digest if there is one, else the tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = split_digest(text)?;
        let (name, tag) = split_tag(text, rest)?;
        if name.len() > MAX_NAME_LEN {
            return Err(ReferenceError::TooLong(name.len()));
        }
        let (host, path) = split_host(name);
        if let Some(host) = host.filter(|host| !is_host(host)) {
            return Err(ReferenceError::Host { text: shown(text), host: shown(host) });
        }
        check_path(text, path)?;
        let registry = match host {
            None | Some("index.docker.io") => DEFAULT_REGISTRY,
            Some(host) => host,
        };
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or_else(|| DEFAULT_TAG.to_owned())),
        };
        Ok(Self { registry: registry.to_owned(), repository, version })
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceError> {
    let Some((rest, digest)) = text.split_once('@') else { return Ok((text, None)) };
    let digest = digest.parse().map_err(|source| ReferenceError::Digest { text: shown(text), source })?;
    Ok((rest, Some(digest)))
}

/// The tag follows the last colon behind the last slash; a colon before that slash belongs to a port.
fn split_tag<'a>(text: &str, rest: &'a str) -> Result<(&'a str, Option<String>), ReferenceError> {
    let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = rest[last_component..].find(':') else { return Ok((rest, None)) };
    let (name, tag) = rest.split_at(last_component + colon);
    let tag = &tag[1..];
    if !is_tag(tag) {
        return Err(ReferenceError::Tag { text: shown(text), tag: shown(tag) });
    }
    Ok((name, Some(tag.to_owned())))
}

fn split_host(name: &str) -> (Option<&str>, &str) {
    let Some((first, path)) = name.split_once('/') else { return (None, name) };
    let is_host =
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase());
    if is_host { (Some(first), path) } else { (None, name) }
}

fn check_path(text: &str, path: &str) -> Result<(), ReferenceError> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(shown(text)));
    }
    match path.split('/').find(|component| !is_component(component)) {
        None => Ok(()),
        Some(component) => Err(ReferenceError::Component { text: shown(text), component: shown(component) }),
    }
}

fn is_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let framed = component.starts_with(alphanumeric) && component.ends_with(alphanumeric);
    framed
        && component.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_LEN
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address, with an optional port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            let v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
            return v6 && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// What an error shows of a text that may be of any length.
fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalized_as_docker_does() {
        let cases = [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("user/a/b/c:1", "docker.io/user/a/b/c:1"),
            ("127.0.0.1:5000/x:tag", "127.0.0.1:5000/x:tag"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("HOST/x", "HOST/x:latest"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("ghcr.io/a-b/c__d.e---f:V1_2.3-4", "ghcr.io/a-b/c__d.e---f:V1_2.3-4"),
            ("a:_", "docker.io/library/a:_"),
        ];
        for (text, normalized) in cases {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), normalized, "{text}");
        }
    }

    #[test]
    fn the_digest_wins_over_the_tag() {
        let reference: Reference = format!("alpine:3.20@{HEX}").parse().unwrap();
        assert_eq!(reference.version(), &Version::Digest(HEX.parse().unwrap()));
        assert_eq!(reference.to_string(), format!("docker.io/library/alpine@{HEX}"));
    }

    #[test]
    fn what_does_not_follow_the_grammar_is_refused() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = "a/".repeat(128) + "a";
        let bad = [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a@",
            "a/",
            "/a",
            "a//b",
            "Alpine",
            "docker.io/Alpine",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            ".a",
            "a.",
            "a b",
            "a:b c",
            "a:-x",
            "a:.x",
            "a:b:c",
            "host:port/a",
            "host:99999/a",
            "host:/a",
            "[::1/a",
            "[zz]:1/a",
            "a.-b.c/x",
            "a@sha256:12",
            "a@md5:00",
            "ä",
            "a:ü",
            "a\n",
            "http://a/b",
            "a@b@c",
            &long_tag,
            &long_name,
        ];
        for text in bad {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn the_familiar_form_is_short_and_means_the_same() {
        for text in ["alpine:3.20", "user/app:1", "127.0.0.1:5000/x:tag", "localhost:5000/library/x:1"] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_without_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn the_normalized_and_the_familiar_form_parse_to_the_same_reference(
            host in prop::option::of("([a-z][a-z0-9]{0,5}\\.){1,2}[a-z]{2,3}(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,6}/[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in any::<bool>(),
        ) {
            let mut text = host.map(|host| host + "/").unwrap_or_default() + &path;
            if let Some(tag) = &tag {
                text = text + ":" + tag;
            }
            if digest {
                text = text + "@" + HEX;
            }
            let reference: Reference = text.parse().unwrap();
            let again: Reference = reference.to_string().parse().unwrap();
            prop_assert_eq!(&again, &reference);
            let familiar: Reference = reference.familiar().parse().unwrap();
            prop_assert_eq!(&familiar, &reference);
        }
    }
}
