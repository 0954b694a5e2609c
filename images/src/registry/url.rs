//! URLs of a registry: its endpoint, and where its redirects lead.

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use crate::reference::DEFAULT_REGISTRY;

/// Where the registry that is written `docker.io` answers.
const DEFAULT_ENDPOINT: &str = "registry-1.docker.io";

/// The host (and port) to connect to.
pub(super) fn endpoint(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DEFAULT_ENDPOINT } else { registry }
}

/// Whether the registry is on this host.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether both lead to the same server, so that it may see the same secrets.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let default = if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
        let host = uri.host().map(str::to_ascii_lowercase);
        (uri.scheme().cloned(), host, uri.port_u16().unwrap_or(default))
    };
    origin(a) == origin(b)
}

/// What `location`, found in an answer from `base`, means. `None` if it is no HTTP URL.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or(location);
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let directory = base.path().rfind('/').map_or("/", |slash| &base.path()[..=slash]);
        format!("{scheme}://{authority}{directory}{location}")
    };
    let uri: Uri = text.parse().ok()?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    (http && uri.host().is_some()).then_some(uri)
}

/// `uri` with one more parameter, or several, in its query.
pub(super) fn with_query(uri: &Uri, query: &str) -> String {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    format!("{uri}{separator}{query}")
}

/// Percent-encodes a query value or a form field.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            // Writing to a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base: Uri = "https://r.org:5000/v2/a/blobs/x?y=1".parse().unwrap();
        for (location, target) in [
            ("https://cdn.org/b?sig=%2F", "https://cdn.org/b?sig=%2F"),
            ("http://cdn.org/b#part", "http://cdn.org/b"),
            ("//cdn.org/b", "https://cdn.org/b"),
            ("/b", "https://r.org:5000/b"),
            ("b", "https://r.org:5000/v2/a/blobs/b"),
            ("?z", "https://r.org:5000/v2/a/blobs/x?z"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), target, "{location}");
        }
        for location in ["ftp://a/b", "file:///etc/passwd", "https://", "http:// /"] {
            assert!(resolve(&base, location).is_none(), "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a.org/x", "https://A.org:443/y"));
        assert!(!same("https://a.org/x", "http://a.org/x"));
        assert!(!same("https://a.org/x", "https://a.org:5000/x"));
        assert!(!same("https://a.org/x", "https://a.org.evil.org/x"));
    }

    #[test]
    fn loopback_is_recognized() {
        for registry in ["127.0.0.1:5000", "127.9.9.9", "localhost:1", "localhost", "[::1]:5000"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["docker.io", "10.0.0.1:5000", "localhost.evil.org", "127.0.0.1.evil.org", "[::2]:1"]
        {
            assert!(!is_loopback(registry), "{registry}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("repository:a/b:pull ä"), "repository%3Aa%2Fb%3Apull%20%C3%A4");
    }
}
