//! The metadata service as the guest sees it: HTTP at 169.254.169.254, Firecracker's MMDS versions 1 and 2.
//!
//! The guest controls every byte of a request. Version 2 wants a session token, which whoever lures a program of the
//! guest into fetching a URL cannot have it ask for.

use std::hash::{BuildHasher as _, RandomState};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use api_server::wire::MmdsVersion;
use devices::virtio::net::detour::Respond;
use serde_json::Value;

use super::metadata::Metadata;
use crate::clock;

/// Where guests look for it.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Most headers of a request.
const MAX_HEADERS: usize = 32;
/// Where a token is asked for.
const TOKEN_PATH: &str = "/latest/api/token";
/// Longest life of a token in seconds: six hours.
const MAX_TTL: u64 = 21_600;

/// The store, which the API's side shares.
pub type SharedMetadata = Arc<Mutex<Metadata>>;

/// Answers a guest.
#[derive(Debug)]
pub struct MetadataService {
    /// What there is to be known.
    pub store: SharedMetadata,
    /// With or without tokens.
    pub version: MmdsVersion,
    /// Answer as EC2's service does, whatever is accepted.
    pub imds_compat: bool,
    /// What tokens are made with: drawn for this process, so none outlives it, in a snapshot neither.
    pub keys: [RandomState; 2],
}

/// A status line's end, a content type, headers and a body.
struct Answer {
    status: &'static str,
    kind: &'static str,
    header: Option<(String, String)>,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Answer { status, kind: "text/plain", header: None, body: body.into() }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Answer { status, kind, header, body } = self;
        let header = header.as_ref().map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nServer: Firecracker API\r\nConnection: close\r\n{header}Content-Type: {kind}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

impl Respond for MetadataService {
    fn respond(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Request::new(&mut headers);
        let answer = match head.parse(request) {
            Ok(httparse::Status::Partial) => return None,
            // No request of the service has a body that says anything.
            Ok(httparse::Status::Complete(_)) => {
                let path = clean(head.path.unwrap_or_default());
                self.answer(head.method.unwrap_or_default(), &path, &Headers(head.headers))
            }
            Err(error) => Answer::text("400 Bad Request", format!("Invalid HTTP request: {error}.")),
        };
        Some(answer.to_bytes())
    }
}

impl MetadataService {
    fn answer(&self, method: &str, path: &str, headers: &Headers<'_>) -> Answer {
        match method {
            "GET" => self.get(path, headers),
            "PUT" => self.put(path, headers),
            _ => Answer {
                header: Some(("Allow".into(), "GET, PUT".into())),
                ..Answer::text("405 Method Not Allowed", "Not allowed HTTP method.")
            },
        }
    }

    fn get(&self, path: &str, headers: &Headers<'_>) -> Answer {
        if self.version == MmdsVersion::V2 {
            let token = headers.one_of(&["x-metadata-token", "x-aws-ec2-metadata-token"]);
            let Some((_, token)) = token else {
                return Answer::text(
                    "401 Unauthorized",
                    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the \
                     session token.",
                );
            };
            if !self.is_valid(&token) {
                return Answer::text("401 Unauthorized", "MMDS token not valid.");
            }
        }
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(value) = store.at(path.strip_suffix('/').unwrap_or(path)) else {
            return Answer::text("404 Not Found", format!("Resource not found: {path}."));
        };
        let accepted = headers.one_of(&["accept"]).map(|(_, value)| value).unwrap_or_default();
        if !self.imds_compat && accepted.contains("application/json") {
            return Answer { kind: "application/json", ..Answer::text("200 OK", value.to_string()) };
        }
        match listing(value) {
            Some(text) => Answer::text("200 OK", text),
            None => Answer::text(
                "501 Not Implemented",
                "Cannot retrieve value. The value has an unsupported type.",
            ),
        }
    }

    /// A token.
    fn put(&self, path: &str, headers: &Headers<'_>) -> Answer {
        if headers.one_of(&["x-forwarded-for"]).is_some() {
            return Answer::text(
                "400 Bad Request",
                "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For",
            );
        }
        if path != TOKEN_PATH {
            return Answer::text("404 Not Found", format!("Resource not found: {path}."));
        }
        let names = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];
        let Some((name, ttl)) = headers.one_of(&names) else {
            return Answer::text(
                "400 Bad Request",
                "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                 `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
            );
        };
        match ttl.parse().ok().filter(|seconds| (1..=MAX_TTL).contains(seconds)) {
            Some(seconds) => {
                let end = clock::monotonic_ns() / 1_000_000_000 + seconds;
                Answer {
                    header: Some((name, seconds.to_string())),
                    ..Answer::text("200 OK", self.token(end))
                }
            }
            None => Answer::text(
                "400 Bad Request",
                format!(
                    "Invalid time to live value provided for token: {ttl}. Please provide a value between 1 and {MAX_TTL}."
                ),
            ),
        }
    }

    /// The token that is good until `end`, in seconds of CLOCK_MONOTONIC: that time, sealed.
    fn token(&self, end: u64) -> String {
        let [first, second] = &self.keys;
        format!("{end:016x}{:016x}{:016x}", first.hash_one(end), second.hash_one(end))
    }

    fn is_valid(&self, token: &str) -> bool {
        let end = token.get(..16).and_then(|end| u64::from_str_radix(end, 16).ok());
        end.is_some_and(|end| end > clock::monotonic_ns() / 1_000_000_000 && self.token(end) == token)
    }
}

/// The headers of a request.
struct Headers<'a>(&'a [httparse::Header<'a>]);

impl Headers<'_> {
    /// The first header with one of these names: its name as it was written, and its value.
    fn one_of(&self, names: &[&str]) -> Option<(String, String)> {
        let found =
            self.0.iter().find(|header| names.iter().any(|name| header.name.eq_ignore_ascii_case(name)));
        found.map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).trim().to_owned()))
    }
}

/// A path without query, host and doubled slashes.
fn clean(target: &str) -> String {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    let mut clean = String::with_capacity(path.len());
    for letter in path.split('?').next().unwrap_or_default().chars() {
        if letter != '/' || !clean.ends_with('/') {
            clean.push(letter);
        }
    }
    clean
}

/// As EC2's service shows a value: the text of a string, the names in an object, with a slash where more is below.
fn listing(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) => {
            let name = |(name, value): (&String, &Value)| {
                if value.is_object() { format!("{name}/") } else { name.clone() }
            };
            Some(fields.iter().map(name).collect::<Vec<_>>().join("\n"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(version: MmdsVersion) -> MetadataService {
        let mut store = Metadata::new(1000);
        store.put(json!({"latest":{"meta-data":{"ami-id":"ami-1","n":1},"user":"x"}})).unwrap();
        MetadataService {
            store: Arc::new(Mutex::new(store)),
            version,
            imds_compat: false,
            keys: [RandomState::new(), RandomState::new()],
        }
    }

    /// Status and body of the answer to a whole request.
    fn ask(service: &mut MetadataService, line: &str, headers: &str) -> (u16, String) {
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        for len in 0..request.len() {
            assert_eq!(service.respond(&request.as_bytes()[..len]), None);
        }
        let answer = String::from_utf8(service.respond(request.as_bytes()).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[test]
    fn the_first_version_answers_without_a_token() {
        let service = &mut service(MmdsVersion::V1);
        assert_eq!(ask(service, "GET /latest/meta-data/ami-id", ""), (200, "ami-1".into()));
        assert_eq!(ask(service, "GET //latest///meta-data/", ""), (200, "ami-id\nn".into()));
        assert_eq!(ask(service, "GET /latest", ""), (200, "meta-data/\nuser".into()));
        assert_eq!(ask(service, "GET /", ""), (200, "latest/".into()));
        let json = "Accept: application/json\r\n";
        assert_eq!(ask(service, "GET /latest/meta-data/n", json), (200, "1".into()));
        assert_eq!(ask(service, "GET /latest/meta-data/n", "").0, 501);
        assert_eq!(ask(service, "GET /nothing", "").0, 404);
        assert_eq!(ask(service, "DELETE /latest", "").0, 405);
        service.imds_compat = true;
        assert_eq!(ask(service, "GET /latest/user", json), (200, "x".into()));
    }

    #[test]
    fn the_second_version_wants_a_token() {
        let service = &mut service(MmdsVersion::V2);
        let path = "GET /latest/user";
        assert_eq!(ask(service, path, "").0, 401);
        assert_eq!(ask(service, path, "X-metadata-token: x\r\n").0, 401);
        let ttl = |ttl: &str| format!("X-metadata-token-ttl-seconds: {ttl}\r\n");
        for wrong in ["0", "21601", "-1", "x", ""] {
            assert_eq!(ask(service, "PUT /latest/api/token", &ttl(wrong)).0, 400, "{wrong}");
        }
        assert_eq!(ask(service, "PUT /latest/api/token", "").0, 400);
        assert_eq!(ask(service, "PUT /latest/other", &ttl("60")).0, 404);
        let forwarded = format!("{}X-Forwarded-For: 1.2.3.4\r\n", ttl("60"));
        assert_eq!(ask(service, "PUT /latest/api/token", &forwarded).0, 400);
        for name in ["X-metadata-token", "x-aws-ec2-metadata-token"] {
            let (status, token) = ask(service, "PUT /latest/api/token", &ttl("60"));
            assert_eq!(status, 200);
            assert_eq!(ask(service, path, &format!("{name}: {token}\r\n")), (200, "x".into()));
        }
    }

    #[test]
    fn tokens_end_and_are_of_one_process() {
        let first = service(MmdsVersion::V2);
        let now = clock::monotonic_ns() / 1_000_000_000;
        assert!(first.is_valid(&first.token(now + 10)));
        assert!(!first.is_valid(&first.token(now)));
        assert!(!service(MmdsVersion::V2).is_valid(&first.token(now + 10)));
        // Another time under the same seal.
        let forged =
            first.token(now + 10).replace(&format!("{:016x}", now + 10), &format!("{:016x}", now + 20));
        assert!(!first.is_valid(&forged));
        assert!(
            !first.is_valid("") && !first.is_valid("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}")
        );
    }

    #[test]
    fn nonsense_is_answered() {
        let mut service = service(MmdsVersion::V1);
        let answer = service.respond(b"\0\0\r\n\r\n").unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400"));
    }
}
