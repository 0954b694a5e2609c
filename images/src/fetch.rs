//! An archive from an address, for `import http://…`, bounded in size and time.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::Uri;

use crate::registry::tls;
use crate::unpack::limits::MAX_UNPACKED_BYTES;

/// Longest address.
const MAX_URL: usize = 8 << 10;
/// Redirects that are followed, never from HTTPS to HTTP.
const MAX_REDIRECTS: u32 = 5;

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// For a connection, its TLS handshake included.
    pub connect: Duration,
    /// For the next byte.
    pub stall: Duration,
    /// For all of it: a server that sends a byte now and then ends, too.
    pub whole: Duration,
    /// Most bytes.
    pub bytes: u64,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            whole: Duration::from_secs(3600),
            bytes: MAX_UNPACKED_BYTES,
        }
    }
}

/// Why an archive did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No address.
    #[error("{0:?} is no address of an archive: write http://HOST/PATH or https://HOST/PATH")]
    Url(String),
    /// Nobody answers, or nobody who can be trusted.
    #[error("cannot fetch {url}")]
    Failed {
        /// The address.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The server answers something else.
    #[error("cannot fetch {url}: the server answers {status}")]
    Status {
        /// The address.
        url: String,
        /// HTTP status with its meaning.
        status: String,
    },
    /// It is too large.
    #[error("{url} is larger than {limit} bytes, the most that an import takes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// It takes too long.
    #[error("{url} did not come within {} s", .limit.as_secs())]
    TooLong {
        /// The address.
        url: String,
        /// The limit.
        limit: Duration,
    },
    /// It broke off.
    #[error("{url} broke off after {count} bytes")]
    BrokenOff {
        /// The address.
        url: String,
        /// Bytes that came.
        count: u64,
    },
}

/// Whether `text` is an address and no file.
pub fn is_url(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    scheme.is_some_and(|scheme| scheme == "http" || scheme == "https")
}

/// Bytes on their way.
pub struct Fetched {
    url: String,
    reader: Box<dyn Read + Send>,
    count: u64,
    length: Option<u64>,
    begun: Instant,
    limits: FetchLimits,
}

/// Begins to fetch `url`.
pub fn open(url: &str, limits: FetchLimits) -> Result<Fetched, FetchError> {
    let bad = || FetchError::Url(url.chars().take(200).collect());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    if !is_url(url) || url.len() > MAX_URL || uri.host().is_none_or(str::is_empty) {
        return Err(bad());
    }
    // Passwords in an address are nobody's business but the server's.
    let shown = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
    let shown = shown.map_or_else(|| url.to_owned(), |(secret, _)| url.replacen(secret, "***", 1));
    let secure = uri.scheme_str() == Some("https");
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .https_only(secure)
        .user_agent(concat!("lighter/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls::of_host())
        .timeout_connect(Some(limits.connect))
        .timeout_per_read(Some(limits.stall))
        .timeout_recv_response(Some(limits.stall));
    let agent = config.build().new_agent();
    let answer = agent.get(url).call();
    let answer =
        answer.map_err(|source| FetchError::Failed { url: shown.clone(), source: Box::new(source) })?;
    if answer.status() != 200 {
        return Err(FetchError::Status { url: shown, status: answer.status().to_string() });
    }
    let length = answer.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limits.bytes) {
        return Err(FetchError::TooLarge { url: shown, limit: limits.bytes });
    }
    let reader = Box::new(answer.into_body().into_with_config().limit(u64::MAX).reader());
    Ok(Fetched { url: shown, reader, count: 0, length, begun: Instant::now(), limits })
}

impl Fetched {
    fn fail(&self, make: impl FnOnce(String) -> FetchError) -> io::Error {
        io::Error::other(make(self.url.clone()))
    }
}

impl Read for Fetched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.begun.elapsed() > self.limits.whole {
            return Err(self.fail(|url| FetchError::TooLong { url, limit: self.limits.whole }));
        }
        let count = match self.reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            result => result?,
        };
        if count == 0 && !buffer.is_empty() && self.length.is_some_and(|length| self.count < length) {
            return Err(self.fail(|url| FetchError::BrokenOff { url, count: self.count }));
        }
        self.count += count as u64;
        if self.count > self.limits.bytes {
            return Err(self.fail(|url| FetchError::TooLarge { url, limit: self.limits.bytes }));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpListener;

    /// An address at which `answer` is sent once, piece by piece.
    fn served(pieces: &'static [&'static [u8]], pause: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            for piece in pieces {
                if stream.write_all(piece).is_err() {
                    return;
                }
                std::thread::sleep(pause);
            }
        });
        format!("http://{address}/root.tar")
    }

    fn quick() -> FetchLimits {
        FetchLimits {
            stall: Duration::from_millis(300),
            whole: Duration::from_millis(900),
            bytes: 100,
            ..FetchLimits::default()
        }
    }

    fn get(url: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut fetched = open(url, quick()).map_err(|error| error.to_string())?;
        fetched.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn what_is_there_comes_whole_or_with_the_reason() {
        assert!(is_url("http://x/y") && is_url("HTTPS://x") && !is_url("./http:x") && !is_url("ftp://x/y"));
        let good = served(&[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"], NONE);
        assert_eq!(get(&good).unwrap(), b"hello");
        let missing = served(&[b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"], NONE);
        assert!(get(&missing).unwrap_err().contains("the server answers 404"));
        let short = served(&[b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"], NONE);
        let error = get(&short).unwrap_err();
        assert!(error.contains("broke off after 5 bytes"), "{error}");
        for bad in ["http://", "ftp://x/y", "http:///x", "file"] {
            assert!(get(bad).unwrap_err().contains("no address"), "{bad}");
        }
        assert!(get("http://127.0.0.1:1/x").unwrap_err().contains("cannot fetch http://127.0.0.1:1/x"));
        let error = get("http://me:secret@127.0.0.1:1/x").unwrap_err();
        assert!(error.contains("***@127.0.0.1") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn neither_size_nor_time_is_without_bound() {
        let large = served(&[b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n"], NONE);
        assert!(get(&large).unwrap_err().contains("larger than 100 bytes"));
        let endless = served(&[b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 101]], NONE);
        assert!(get(&endless).unwrap_err().contains("larger than 100 bytes"));
        let silent = served(&[b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"x"], Duration::from_secs(2));
        let begun = Instant::now();
        get(&silent).unwrap_err();
        assert!(begun.elapsed() < Duration::from_millis(1500));
        let head: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n";
        let drops: &[&[u8]] = &[head, b"x", b"x", b"x", b"x", b"x", b"x", b"x", b"x", b"x", b"x"];
        let dripping = served(Vec::leak(drops.to_vec()), Duration::from_millis(200));
        assert!(get(&dripping).unwrap_err().contains("did not come within"));
    }
}
