//! Platforms: which manifest of a multi-platform index this host runs.
//!
//! OCI image-spec, `image-index.md`. An entry without an architecture (an attestation has `unknown`) never matches.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, Platform as SpecPlatform};
use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in the Go names that images use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, `v7`, …; `None` matches any.
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a platform: write OS/ARCHITECTURE[/VARIANT], for example linux/amd64")]
pub struct PlatformError(String);

impl Platform {
    /// What a guest of this host runs.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether something built for `os`, `architecture` and `variant` runs here.
    pub fn matches(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let same_variant = match (self.variant.as_deref(), variant) {
            (None, _) | (_, None) => true,
            (Some(want), Some(have)) => want == have,
        };
        self.os == os && self.architecture == architecture && same_variant
    }

    /// The first entry of an index that runs here: one that says so, else one that has no platform at all.
    pub fn select<'a>(&self, entries: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let named =
            |entry: &&Descriptor| entry.platform().as_ref().is_some_and(|have| self.matches_spec(have));
        entries.iter().find(named).or_else(|| entries.iter().find(|entry| entry.platform().is_none()))
    }

    fn matches_spec(&self, have: &SpecPlatform) -> bool {
        let variant = have.variant().as_deref();
        self.matches(&have.os().to_string(), &have.architecture().to_string(), variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(word) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: rest.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(PlatformError(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |platform: &&str| {
            let platform = match *platform {
                "" => String::new(),
                text => {
                    let p: Platform = text.parse().unwrap();
                    let variant = p.variant.map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
                    format!(r#","platform":{{"os":"{}","architecture":"{}"{variant}}}"#, p.os, p.architecture)
                }
            };
            let digest = crate::digest::Digest::of(platform.as_bytes());
            let json = format!(r#"{{"mediaType":"m","size":1,"digest":"{digest}"{platform}}}"#);
            serde_json::from_str(&json).unwrap()
        };
        platforms.iter().map(entry).collect()
    }

    fn selected(want: &str, platforms: &[&str]) -> Option<usize> {
        let entries = entries(platforms);
        let chosen = want.parse::<Platform>().unwrap().select(&entries)?.clone();
        entries.iter().position(|entry| *entry == chosen)
    }

    #[test]
    fn the_entry_of_the_platform_is_selected() {
        let index = ["unknown/unknown", "linux/arm/v6", "linux/arm/v7", "linux/amd64", "windows/amd64"];
        assert_eq!(selected("linux/amd64", &index), Some(3));
        assert_eq!(selected("linux/arm/v7", &index), Some(2));
        assert_eq!(selected("linux/arm", &index), Some(1));
        assert_eq!(selected("linux/s390x", &index), None);
    }

    #[test]
    fn an_entry_without_a_platform_is_the_last_resort() {
        assert_eq!(selected("linux/amd64", &["linux/arm64", ""]), Some(1));
        assert_eq!(selected("linux/amd64", &["", "linux/amd64"]), Some(1));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
    }
}
