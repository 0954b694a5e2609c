//! A client of the API for the command line: one request a connection, over a Unix socket, without a runtime.

pub mod frames;

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::problem::ProblemBody;
use crate::session::PROTOCOL;

/// Longest line of an answer's head, and of a chunk's.
const MAX_LINE: u64 = 16 << 10;
/// Most lines of a head.
const MAX_LINES: usize = 100;
/// Bytes of a body that are sent together.
const CHUNK: usize = 256 << 10;
/// Longest answer that is read whole.
const MAX_ANSWER: u64 = 64 << 20;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address that this can use.
    #[error("--host {0:?} is no address of a server: write unix:///PATH")]
    Host(String),
    /// Nobody is there.
    #[error("cannot reach the server at {}: is `lighter serve` running there?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the connection to the server broke")]
    Broken(#[from] io::Error),
    /// The server refuses.
    #[error("{}", .0.detail)]
    Problem(ProblemBody),
    /// What came is not what the API says.
    #[error("the server answered something else than the API says: are both of one version?")]
    Answer(#[from] serde_json::Error),
}

/// Where a server is.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    token: Option<String>,
}

/// The body of an answer, to be read as it comes.
#[derive(Debug)]
pub struct Answer {
    reader: BufReader<UnixStream>,
    length: Length,
}

#[derive(Debug)]
enum Length {
    Known(u64),
    /// Bytes left of this chunk.
    Chunked(u64),
    UntilEnd,
    Over,
}

impl Client {
    /// The server at `host`, which is `unix://PATH`.
    pub fn new(host: &str, token: Option<String>) -> Result<Self, ClientError> {
        match host.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            Some(path) => Ok(Self { path: path.into(), token }),
            None => Err(ClientError::Host(host.to_owned())),
        }
    }

    /// Asks for JSON.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send("GET", path, None, &[])?.json()
    }

    /// Sends JSON and gets JSON.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.send("POST", path, Some(&serde_json::to_vec(body)?), &[])?.json()
    }

    /// Sends JSON to something that answers nothing.
    pub fn tell(&self, method: &str, path: &str, body: Option<&impl Serialize>) -> Result<(), ClientError> {
        let body = body.map(serde_json::to_vec).transpose()?;
        self.send(method, path, body.as_deref(), &[]).map(drop)
    }

    /// Sends a request; the answer's body is to be read.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> Result<Answer, ClientError> {
        let mut head = self.head(method, path, headers);
        if let Some(body) = body {
            head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        let mut stream = self.connect()?;
        stream.write_all((head + "\r\n").as_bytes())?;
        // A server that refuses may answer and close before it has read everything.
        let sent = stream.write_all(body.unwrap_or_default());
        Self::answer(stream, sent)
    }

    /// Sends what `fill` writes as the body of a request, in chunks.
    pub fn upload<E: From<ClientError>>(
        &self,
        method: &str,
        path: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Answer, E> {
        let mut head = self.head(method, path, &[]);
        head += "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut stream = self.connect()?;
        stream.write_all(head.as_bytes()).map_err(ClientError::Broken)?;
        let mut chunks = Chunks { stream: &mut stream, buffer: Vec::new(), failed: false };
        let filled = fill(&mut chunks);
        let sent = match &filled {
            Ok(()) => chunks.finish(),
            Err(_) => Ok(()),
        };
        match (filled, chunks.failed) {
            // The server refused what it got, and says why.
            (Err(error), true) => match Self::answer(stream, Ok(())) {
                Err(refusal @ ClientError::Problem(_)) => Err(refusal.into()),
                _ => Err(error),
            },
            (Err(error), false) => Err(error),
            (Ok(()), _) => Ok(Self::answer(stream, sent)?),
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let failed = |source| ClientError::Connect { path: self.path.clone(), source };
        UnixStream::connect(&self.path).map_err(failed)
    }

    fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: lighter\r\n");
        if let Some(token) = &self.token {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head
    }

    fn answer(stream: UnixStream, sent: io::Result<()>) -> Result<Answer, ClientError> {
        let mut answer = Answer { reader: BufReader::new(stream), length: Length::UntilEnd };
        match answer.head() {
            Ok(status @ (101 | 200..300)) => {
                sent?;
                if status == 204 {
                    answer.length = Length::Over;
                }
                Ok(answer)
            }
            Ok(_) => Err(ClientError::Problem(answer.json()?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a stream of the connection: frames as in [`crate::session`].
    pub fn upgrade(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<BufReader<UnixStream>, ClientError> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let headers = [("connection", "Upgrade"), ("upgrade", PROTOCOL)];
        Ok(self.send("POST", path, body.as_deref(), &headers)?.reader)
    }
}

/// A body in chunks.
struct Chunks<'a> {
    stream: &'a mut UnixStream,
    buffer: Vec<u8>,
    /// The server takes no more.
    failed: bool,
}

impl Chunks<'_> {
    fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.stream.write_all(b"0\r\n\r\n")
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let head = format!("{:x}\r\n", self.buffer.len());
        self.buffer.extend_from_slice(b"\r\n");
        let sent = self.stream.write_all(head.as_bytes()).and_then(|()| self.stream.write_all(&self.buffer));
        self.failed |= sent.is_err();
        self.buffer.clear();
        sent
    }
}

/// A name as a part of a path or query.
pub fn encode(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

impl Answer {
    /// All of it.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let mut text = Vec::new();
        self.take(MAX_ANSWER).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Server-sent events as they come: name and data of each, until `act` says false.
    pub fn events(
        self,
        mut act: impl FnMut(&str, &str) -> Result<bool, ClientError>,
    ) -> Result<(), ClientError> {
        let (mut name, mut data) = (String::new(), String::new());
        for line in BufReader::new(self).lines() {
            let line = line?;
            match line.split_once(':') {
                None if line.is_empty() && !data.is_empty() => {
                    if !act(&name, &data)? {
                        return Ok(());
                    }
                    name.clear();
                    data.clear();
                }
                Some(("event", value)) => name = value.trim().to_owned(),
                Some(("data", value)) => data += value.trim_start(),
                _ => {}
            }
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads the head and gives the status.
    fn head(&mut self) -> io::Result<u16> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP");
        let first = self.line()?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(bad)?;
        for _ in 0..MAX_LINES {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                return if line.is_empty() { Ok(status) } else { Err(bad()) };
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => self.length = Length::Known(value.trim().parse().map_err(|_| bad())?),
                "transfer-encoding" => self.length = Length::Chunked(0),
                _ => {}
            }
        }
        Err(bad())
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Length::Chunked(0) = self.length {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            self.length = if size == 0 { Length::Over } else { Length::Chunked(size) };
        }
        let most = match self.length {
            Length::Known(left) | Length::Chunked(left) => left,
            Length::UntilEnd => u64::MAX,
            Length::Over => 0,
        };
        let wanted = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..wanted])?;
        match &mut self.length {
            Length::Known(left) => *left -= count as u64,
            Length::Chunked(left) => {
                *left -= count as u64;
                // A chunk that breaks off is not the end of what was to come.
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if *left == 0 {
                    self.line()?;
                }
            }
            Length::UntilEnd | Length::Over => {}
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(answer: &'static [u8]) -> (tempfile::TempDir, Client) {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer).unwrap();
        });
        let client = Client::new(&format!("unix://{}", path.display()), None).unwrap();
        (base, client)
    }

    #[test]
    fn bodies_come_whole_in_chunks_or_not_at_all() {
        let (_base, client) = served(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}");
        assert_eq!(client.get::<serde_json::Value>("/").unwrap()["a"], 1);
        let (_base, client) = served(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":2}\r\n0\r\n\r\n",
        );
        assert_eq!(client.get::<serde_json::Value>("/").unwrap()["a"], 2);
        let (_base, client) = served(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{\"a\":3}");
        assert!(matches!(client.get::<serde_json::Value>("/"), Err(ClientError::Broken(_))));
        let problem =
            b"HTTP/1.1 404 x\r\n\r\n{\"type\":\"t\",\"title\":\"u\",\"status\":404,\"detail\":\"gone\"}";
        let (_base, client) = served(problem);
        assert_eq!(client.get::<serde_json::Value>("/").unwrap_err().to_string(), "gone");
        assert!(matches!(Client::new("tcp://x", None), Err(ClientError::Host(_))));
    }

    #[test]
    fn events_are_told_one_by_one() {
        let (_base, client) =
            served(b"HTTP/1.1 200 OK\r\n\r\n:\n\nid: 1\nevent: a\ndata: x\n\nevent: b\ndata: y\n\n");
        let mut told = Vec::new();
        let answer = client.send("GET", "/", None, &[]).unwrap();
        answer
            .events(|name, data| {
                told.push(format!("{name}{data}"));
                Ok(name == "a")
            })
            .unwrap();
        assert_eq!(told, ["ax", "by"]);
    }
}
