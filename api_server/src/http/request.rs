//! A request, out of the bytes that a client has sent so far.

use super::{Response, Status};
use crate::fault::Fault;

/// Most bytes before a body. Stops a client from filling memory with a head that never ends.
const MAX_HEAD: usize = 8 << 10;
/// Most headers; what clients send has about five.
const MAX_HEADERS: usize = 32;

/// What the API is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Sets.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// As it is written in a request.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Method::Get, Method::Put, Method::Patch, Method::Delete]
            .into_iter()
            .find(|method| method.name() == name)
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Path of its target, without query.
    pub path: String,
    /// Its body; empty without one.
    pub body: Vec<u8>,
    /// The client wants the connection to end with the answer.
    pub close: bool,
}

/// What the bytes so far came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// There is more to come; `wants_continue` if the client waits for a `100 Continue` before it.
    Partial {
        /// The client waits.
        wants_continue: bool,
    },
    /// A request, and the bytes that it took.
    Complete(Request, usize),
}

/// Bytes that are no request. The connection ends after the answer: where the next one begins is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No HTTP.
    #[error("Invalid HTTP request: {0}.")]
    Syntax(String),
    /// The head is too long.
    #[error("The head of the request is longer than {MAX_HEAD} bytes.")]
    Head,
    /// A method that no path has.
    #[error("Invalid HTTP Method: {0}.")]
    Method(String),
    /// HTTP/2 and others.
    #[error("Unsupported HTTP version.")]
    Version,
    /// Not a number, or two of them.
    #[error("Invalid Content-Length header.")]
    Length,
    /// Chunked, mostly.
    #[error("Unsupported Transfer-Encoding: send a Content-Length.")]
    Encoding,
    /// The body is larger than the server takes.
    #[error("Request payload with size {len} is larger than the limit of {limit} allowed by server.")]
    Payload {
        /// Its announced length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl From<&HttpError> for Response {
    fn from(error: &HttpError) -> Self {
        let status = match error {
            HttpError::Payload { .. } => Status::PayloadTooLarge,
            _ => Status::BadRequest,
        };
        Response::from(Fault { status, message: error.to_string() }).closing()
    }
}

/// Takes one request off the front of `bytes`; its body has at most `max_body` bytes.
pub fn parse(bytes: &[u8], max_body: usize) -> Result<Parsed, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let visible = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let head_len = match head.parse(visible) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if visible.len() < MAX_HEAD => {
            return Ok(Parsed::Partial { wants_continue: false });
        }
        Ok(httparse::Status::Partial) => return Err(HttpError::Head),
        Err(httparse::Error::Version) => return Err(HttpError::Version),
        Err(error) => return Err(HttpError::Syntax(error.to_string())),
    };
    let name = head.method.unwrap_or_default();
    let method = Method::parse(name).ok_or_else(|| HttpError::Method(name.to_owned()))?;
    let framing = Framing::of(head.headers, head.version)?;
    if framing.len > max_body {
        return Err(HttpError::Payload { len: framing.len, limit: max_body });
    }
    let end = head_len + framing.len;
    match bytes.get(head_len..end) {
        Some(body) => {
            let path = path(head.path.unwrap_or_default());
            Ok(Parsed::Complete(Request { method, path, body: body.to_vec(), close: framing.close }, end))
        }
        None => Ok(Parsed::Partial { wants_continue: framing.wants_continue && bytes.len() == head_len }),
    }
}

/// What the headers say about the body and the connection.
struct Framing {
    len: usize,
    close: bool,
    wants_continue: bool,
}

impl Framing {
    fn of(headers: &[httparse::Header<'_>], version: Option<u8>) -> Result<Self, HttpError> {
        let mut len = None;
        let mut framing = Framing { len: 0, close: version == Some(0), wants_continue: false };
        for header in headers {
            let value = String::from_utf8_lossy(header.value);
            let value = value.trim();
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    // Digits only: `parse` alone takes a sign too.
                    let digits = Some(value).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                    let number = digits.and_then(|text| text.parse().ok()).ok_or(HttpError::Length)?;
                    if len.replace(number).is_some_and(|before| before != number) {
                        return Err(HttpError::Length);
                    }
                }
                "transfer-encoding" if !value.eq_ignore_ascii_case("identity") => {
                    return Err(HttpError::Encoding);
                }
                "connection" => {
                    framing.close = value.eq_ignore_ascii_case("close")
                        || framing.close && !value.eq_ignore_ascii_case("keep-alive");
                }
                "expect" => framing.wants_continue = value.eq_ignore_ascii_case("100-continue"),
                _ => {}
            }
        }
        framing.len = len.unwrap_or(0);
        Ok(framing)
    }
}

/// The path of a target in origin form (`/a?b`) or absolute form (`http://host/a`).
fn path(target: &str) -> String {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    path.split('?').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Parsed, HttpError> {
        parse(text.as_bytes(), 100)
    }

    #[test]
    fn a_request_is_taken_once_all_of_it_is_there() {
        let text = "PUT /actions?x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbodyGET";
        let end = text.len() - 3;
        for len in 0..end {
            assert!(matches!(request(&text[..len]), Ok(Parsed::Partial { .. })), "{len}");
        }
        let wanted =
            Request { method: Method::Put, path: "/actions".into(), body: b"body".to_vec(), close: false };
        assert_eq!(request(text), Ok(Parsed::Complete(wanted, end)));
    }

    #[test]
    fn absolute_targets_lose_their_host() {
        for (target, wanted) in [("http://localhost/a/b", "/a/b"), ("http://localhost", "/"), ("/", "/")] {
            assert_eq!(path(target), wanted);
        }
    }

    #[test]
    fn who_waits_for_a_continue_is_told_apart() {
        let text = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(request(text), Ok(Parsed::Partial { wants_continue: true }));
        assert_eq!(request(&format!("{text}bo")), Ok(Parsed::Partial { wants_continue: false }));
    }

    #[test]
    fn the_connection_ends_when_the_client_says_so() {
        let close = |head: &str| match request(&format!("GET / {head}\r\n\r\n")) {
            Ok(Parsed::Complete(request, _)) => request.close,
            other => panic!("{other:?}"),
        };
        assert!(!close("HTTP/1.1"));
        assert!(close("HTTP/1.1\r\nConnection: Close"));
        assert!(close("HTTP/1.0"));
        assert!(!close("HTTP/1.0\r\nConnection: keep-alive"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let put = |headers: &str| request(&format!("PUT / HTTP/1.1\r\n{headers}\r\n\r\n"));
        assert_eq!(put("Content-Length: 101"), Err(HttpError::Payload { len: 101, limit: 100 }));
        for length in ["-1", "+1", "x", "", "99999999999999999999", "1\r\nContent-Length: 2"] {
            assert_eq!(put(&format!("Content-Length: {length}")), Err(HttpError::Length), "{length}");
        }
        assert_eq!(put("Transfer-Encoding: chunked"), Err(HttpError::Encoding));
        assert_eq!(request("POST / HTTP/1.1\r\n\r\n"), Err(HttpError::Method("POST".into())));
        assert_eq!(request("GET / HTTP/2.0\r\n\r\n"), Err(HttpError::Version));
        assert!(matches!(request("\0\r\n\r\n"), Err(HttpError::Syntax(_))));
        assert!(matches!(put(&"a: b\r\n".repeat(MAX_HEADERS + 1)), Err(HttpError::Syntax(_))));
        assert_eq!(put(&format!("a: {}", "b".repeat(MAX_HEAD))), Err(HttpError::Head));
    }

    #[test]
    fn a_payload_that_is_too_large_has_a_status_of_its_own() {
        let response = Response::from(&HttpError::Payload { len: 101, limit: 100 });
        assert_eq!(response.status, Status::PayloadTooLarge);
        assert_eq!(Response::from(&HttpError::Length).status, Status::BadRequest);
    }
}
