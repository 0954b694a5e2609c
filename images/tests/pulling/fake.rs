//! A registry of a few threads: serves a [`Content`], records what it is asked, and misbehaves as a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use images::Digest;

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    /// As it should.
    Whole,
    /// The connection is closed after this many bytes of the body.
    CutAfter(usize),
    /// Nothing more comes after this many bytes, but the connection stays open.
    StallAfter(usize),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub ending: Ending,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), ending: Ending::Whole }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What a registry holds.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// By tag and by digest: media type and bytes.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
}

impl Content {
    /// Answers as a well-behaved registry does.
    pub fn serve(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if path == "/v2/" {
            return Reply::new(200, "{}");
        }
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return match self.blobs.get(digest) {
                Some(bytes) => part(bytes, request.header("range")),
                None => Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#),
            };
        }
        let version = path.split_once("/manifests/").map(|(_, version)| version);
        match version.and_then(|version| self.manifests.get(version)) {
            Some((media_type, bytes)) => Reply::new(200, bytes.clone())
                .with("content-type", media_type)
                .with("docker-content-digest", &Digest::of(bytes).to_string()),
            None => {
                Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
            }
        }
    }
}

fn part(bytes: &[u8], range: Option<&str>) -> Reply {
    let Some(range) = range else { return Reply::new(200, bytes) };
    let first: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    if first >= bytes.len() {
        return Reply::new(416, "");
    }
    let content_range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::new(206, &bytes[first..]).with("content-range", &content_range)
}

/// A running registry; dropping it closes its port.
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Cut = dyn Fn(&Request, usize) -> Option<usize> + Send + Sync;
type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

impl Registry {
    /// Serves `content`, well behaved.
    pub fn start(content: Content) -> Self {
        Self::with(move |request, _| content.serve(request))
    }

    /// Serves what `handler` says; it is also given the number of earlier requests for the same path.
    pub fn with(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::cutting(|_, _| None, handler)
    }

    /// Like [`Registry::with`], but `cut` may say after how many bytes of a request's body the connection breaks. The
    /// handler sees what came by then; nobody sees its answer.
    pub fn cutting(
        cut: impl Fn(&Request, usize) -> Option<usize> + Send + Sync + 'static,
        handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (cut, handler): (Arc<Cut>, Arc<Handler>) = (Arc::new(cut), Arc::new(handler));
        let thread = {
            let (requests, stop) = (requests.clone(), stop.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (requests, stop) = (requests.clone(), stop.clone());
                    let (cut, handler) = (cut.clone(), handler.clone());
                    std::thread::spawn(move || answer(stream.unwrap(), &requests, &stop, &*cut, &*handler));
                }
            })
        };
        Self { address, requests, stop, thread: Some(thread) }
    }

    /// Everything it was asked, in order; the question whether it speaks TLS is no request.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn blob_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_blob).collect()
    }

    /// `ADDRESS/name`.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(TcpStream::connect(&self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(
    stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    stop: &AtomicBool,
    cut: &Cut,
    handler: &Handler,
) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(&stream);
    let Some(mut request) = read_head(&mut reader) else {
        // A TLS handshake: this registry speaks plain HTTP.
        drop(stream.shutdown(Shutdown::Both));
        return;
    };
    let earlier = {
        let requests = requests.lock().unwrap();
        requests.iter().filter(|earlier| earlier.path == request.path).count()
    };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let cut = cut(&request, earlier);
    request.body = vec![0; cut.unwrap_or(length).min(length)];
    let whole = reader.read_exact(&mut request.body).is_ok() && cut.is_none();
    requests.lock().unwrap().push(request.clone());
    let reply = handler(&request, earlier);
    if !whole {
        drop(stream.shutdown(Shutdown::Both));
        return;
    }
    send(stream, &reply, request.method == "HEAD", stop);
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers, body: Vec::new() })
}

fn send(mut stream: TcpStream, reply: &Reply, head_only: bool, stop: &AtomicBool) {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let body = match reply.ending {
        _ if head_only => &[],
        Ending::Whole => &reply.body[..],
        Ending::CutAfter(count) | Ending::StallAfter(count) => &reply.body[..count],
    };
    // The client may have hung up; the test judges by what it saw.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    if matches!(reply.ending, Ending::StallAfter(_)) && !head_only {
        for _ in 0..500 {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    drop(stream.shutdown(Shutdown::Write));
    // Reads the client's end, so that closing does not reset the connection under the answer.
    let _ = stream.read(&mut [0; 64]);
}
