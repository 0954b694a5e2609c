//! Writing to a repository: blobs in one or several parts, and manifests (distribution-spec "Push").
//!
//! ```text
//! HEAD blob ─► there
//!    └─► POST uploads ─► 201 mounted from another repository
//!            └─► 202 Location ─► PATCH the bytes ─► PUT ?digest= ─► 201
//!                    ▲                └─ broken off ─► GET Location ─► Range: so much is there
//!                    └──── the registry has forgotten the upload ───┘
//! ```

use std::io::Read;

use ureq::http::{HeaderMap, Method, Uri};

use super::{Access, Client, Content, RegistryError, Request, content_digest, header, url};
use crate::digest::Digest;
use crate::manifest::BlobRef;
use crate::reference::Version;

/// A blob on its way into a registry.
pub(crate) struct Upload {
    /// Where its next bytes go.
    location: Uri,
    /// How many bytes the registry has.
    pub(crate) position: u64,
}

/// Gives a blob's bytes from a position on.
pub(crate) type OpenBlob<'a> = &'a dyn Fn(u64) -> std::io::Result<Box<dyn Read + 'a>>;

const BYTES: &str = "application/octet-stream";

impl Client {
    /// Whether the repository has a blob.
    pub(crate) fn has_blob(&self, blob: &BlobRef) -> Result<bool, RegistryError> {
        let uri = self.uri(&format!("blobs/{}", blob.digest))?;
        match self.request(&Method::HEAD, &uri, &[], "a layer") {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins an upload. With `mount`, the registry is asked to take the blob over from the other repository of
    /// [`Access::Push`] first; `None` means that it did, so nothing has to be sent.
    pub(crate) fn begin_upload(&self, digest: &Digest, mount: bool) -> Result<Option<Upload>, RegistryError> {
        let from = match &self.access {
            Access::Push { mount_from: Some(from) } if mount => {
                format!("?mount={digest}&from={}", url::encode(from))
            }
            _ => String::new(),
        };
        let uri = self.uri(&format!("blobs/uploads/{from}"))?;
        let request = Request {
            method: &Method::POST,
            headers: &[],
            body: Content::Bytes(&[]),
            what: "room for a layer",
        };
        let response = self.exchange(&request, &uri)?;
        match response.status().as_u16() {
            201 => Ok(None),
            _ => Ok(Some(Upload { location: self.location(&uri, response.headers())?, position: 0 })),
        }
    }

    /// Sends what the registry lacks of a blob of `size` bytes. After an error, [`Client::locate_upload`] tells how
    /// much of it came through.
    pub(crate) fn send_blob(
        &self,
        upload: &mut Upload,
        size: u64,
        open: OpenBlob<'_>,
    ) -> Result<(), RegistryError> {
        let position = upload.position;
        let mut headers = vec![("content-type", BYTES.to_owned())];
        if position > 0 {
            headers.push(("content-range", format!("{position}-{}", size.saturating_sub(1))));
        }
        let body = Content::Part { open: &|| open(position), length: size.saturating_sub(position) };
        let request = Request { method: &Method::PATCH, headers: &headers, body, what: "storing a layer" };
        let mut response = self.exchange(&request, &upload.location)?;
        if response.status() == 416 {
            return Err(self.status_error(request.what, &mut response));
        }
        upload.location = self.location(&upload.location, response.headers())?;
        // A registry need not say how much it took; the digest decides in the end.
        upload.position = received(response.headers()).unwrap_or(size).min(size);
        Ok(())
    }

    /// Asks how far an upload came. An error of [`RegistryError::is_forgotten`] means to begin anew.
    pub(crate) fn locate_upload(&self, upload: &mut Upload) -> Result<(), RegistryError> {
        let mut response = self.request(&Method::GET, &upload.location, &[], "the state of an upload")?;
        if response.status() == 416 {
            return Err(self.status_error("the state of an upload", &mut response));
        }
        upload.position = received(response.headers()).unwrap_or(0);
        if response.headers().contains_key("location") {
            upload.location = self.location(&upload.location, response.headers())?;
        }
        Ok(())
    }

    /// What it means that a registry takes bytes and then has no more than before.
    pub(crate) fn stuck(&self) -> RegistryError {
        self.protocol("it takes a layer's bytes and then has no more of them than before")
    }

    /// Ends an upload; the registry verifies `digest`.
    pub(crate) fn finish_upload(&self, upload: &Upload, digest: &Digest) -> Result<(), RegistryError> {
        self.put(&with_digest(&upload.location, digest), BYTES, &[], "storing a layer").map(drop)
    }

    /// Sends a small blob in one request behind the one that begins the upload.
    pub(crate) fn put_small(
        &self,
        upload: &Upload,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        self.put(&with_digest(&upload.location, digest), BYTES, bytes, "storing a configuration").map(drop)
    }

    /// Puts a manifest under a tag or its digest.
    pub(crate) fn put_manifest(
        &self,
        version: &Version,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let digest = Digest::of(bytes);
        let uri = self.manifest_uri(version)?.to_string();
        match self.put(&uri, media_type, bytes, "storing the manifest")? {
            Some(actual) if actual.algorithm() == digest.algorithm() && actual != digest => {
                Err(self.protocol(&format!("it stored the manifest as {actual} instead of {digest}")))
            }
            _ => Ok(()),
        }
    }

    fn put(
        &self,
        uri: &str,
        media_type: &str,
        bytes: &[u8],
        what: &str,
    ) -> Result<Option<Digest>, RegistryError> {
        let uri: Uri = uri.parse().map_err(|_| self.protocol("its address makes no URL"))?;
        let headers = [("content-type", media_type.to_owned())];
        let request = Request { method: &Method::PUT, headers: &headers, body: Content::Bytes(bytes), what };
        let mut response = self.exchange(&request, &uri)?;
        if response.status() == 416 {
            return Err(self.status_error(what, &mut response));
        }
        Ok(content_digest(response.headers()))
    }

    /// Where an upload goes on.
    fn location(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri, RegistryError> {
        if headers.contains_key("location") {
            return self.redirect(from, headers);
        }
        Err(self.protocol("it does not say where an upload goes on"))
    }
}

fn with_digest(location: &Uri, digest: &Digest) -> String {
    url::with_query(location, &format!("digest={}", url::encode(&digest.to_string())))
}

/// The number of bytes by `Range: 0-LAST`. What a registry that has nothing says looks like one byte, so one byte
/// counts as nothing.
fn received(headers: &HeaderMap) -> Option<u64> {
    let range = header(headers, "range")?.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    match range.strip_prefix("0-")?.parse::<u64>().ok()? {
        0 => Some(0),
        last => last.checked_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_is_read_from_its_range() {
        let at = |range: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("range", range.parse().unwrap());
            received(&headers)
        };
        assert_eq!(at("0-9"), Some(10));
        assert_eq!(at("bytes=0-9"), Some(10));
        assert_eq!(at("0-0"), Some(0));
        assert_eq!(at("0-18446744073709551615"), None);
        for range in ["", "5-9", "0-", "x", "0--1"] {
            assert_eq!(at(range), None, "{range}");
        }
    }

    #[test]
    fn a_digest_is_added_to_the_query_that_is_there() {
        let digest = Digest::of(b"");
        let text = with_digest(&"http://h/u?state=a".parse().unwrap(), &digest);
        assert_eq!(text, format!("http://h/u?state=a&digest=sha256%3A{}", digest.hex()));
    }
}
