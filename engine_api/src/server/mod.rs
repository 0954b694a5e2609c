//! The server: who may connect, how many, and how long each may take.

mod listener;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::dirs::Dirs;
use engine::session::signals::Signals;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::problem::{Kind, Problem};
use crate::race::{Either, race};
use crate::router;
use crate::service::Service;
use crate::tenant::{TokenError, Tokens};
use crate::watched::watched;
pub use listener::ListenError;
use listener::{Accepted, Listener};
pub use tls::{Tls, TlsError};

/// Connections at once; beyond, they are answered with 503 and closed. Less where the host gives fewer descriptors.
const MAX_CONNECTIONS: usize = 16_384;
/// Descriptors that are kept for everything else.
const SPARE_DESCRIPTORS: usize = 512;
/// Threads that do what the engine does synchronously.
const THREADS: usize = 256;
/// How long the head of a request may take, also that of the next one on a connection.
const HEAD: Duration = Duration::from_secs(15);
/// Largest head of a request.
const MAX_HEAD: usize = 32 << 10;
/// Header lines of a request.
const MAX_HEADERS: usize = 100;
/// What requests under way get when the server ends.
const GRACE: Duration = Duration::from_secs(10);

/// Where the server listens.
#[derive(Clone, Debug)]
pub enum Listen {
    /// A Unix socket, which this user may connect to, or a group.
    Unix {
        /// The socket.
        path: PathBuf,
        /// Members of this group, too.
        group: Option<String>,
    },
    /// What systemd hands over (`LISTEN_FDS`).
    Inherited,
}

/// What the server is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub listen: Listen,
    /// And on TCP.
    pub tcp: Option<(SocketAddr, Tls)>,
    /// Who may call.
    pub tokens: Option<PathBuf>,
    /// Version of lighter.
    pub version: &'static str,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The host.
    #[error("cannot {action}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Serves until SIGTERM or SIGINT comes. To be called while the process has one thread.
pub fn serve(dirs: &Dirs, options: &Options) -> Result<(), ServeError> {
    let host = |action| move |source| ServeError::Host { action, source };
    // Before anything else is opened, which could take the place of a descriptor that was not handed over after all.
    let mut listeners = listener::open(&options.listen)?;
    // Blocked before there are other threads, so that none of them is interrupted.
    let signals = Signals::block().map_err(host("watch signals"))?;
    engine::service::enter();
    let most = raise_descriptors().saturating_sub(SPARE_DESCRIPTORS).clamp(16, MAX_CONNECTIONS);
    let tokens = options.tokens.as_deref().map(Tokens::open).transpose()?;
    let tls = options.tcp.as_ref().map(|(_, tls)| tls.acceptor()).transpose()?;
    if let Some((address, _)) = &options.tcp {
        listeners.push(Listener::tcp(*address)?);
    }
    let service = Service::new(dirs.clone(), tokens, options.version).map_err(host("start the log"))?;
    let service = Arc::new(service);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build()
        .map_err(host("start the runtime"))?;
    let result = runtime.block_on(run(Arc::clone(&service), &listeners, tls, &signals, most));
    // What is still under way belongs to keepers, or is given up as by a crash.
    runtime.shutdown_timeout(Duration::from_millis(200));
    drop(listeners);
    result.map_err(host("serve"))
}

async fn run(
    service: Arc<Service>,
    listeners: &[Listener],
    tls: Option<tokio_rustls::TlsAcceptor>,
    signals: &Signals,
    most: usize,
) -> std::io::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let server = Arc::new(Server { service, tls, most, stopped, requests: AtomicU64::new(0) });
    let places: Vec<_> = listeners.iter().map(Listener::name).collect();
    server.service.log.say("info", "serving", json!({"listen": places, "most_connections": most}));
    for listener in listeners {
        let listener = listener.watch()?;
        tokio::spawn(Arc::clone(&server).accept(listener));
    }
    let watched = watched(signals)?;
    loop {
        let mut ready = watched.readable().await?;
        if let Some(signal) = std::iter::from_fn(|| signals.next()).find(|signal| matches!(signal, 2 | 15)) {
            server.service.log.say("info", "ending", json!({"signal": signal}));
            break;
        }
        ready.clear_ready();
    }
    let _ = stop.send(true);
    server.service.close();
    let end = Instant::now() + GRACE;
    while server.service.metrics.connections.load(Ordering::Relaxed) > 0 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// What the tasks of connections share.
struct Server {
    service: Arc<Service>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    most: usize,
    stopped: watch::Receiver<bool>,
    requests: AtomicU64,
}

/// Counts a connection as long as it lives.
struct Counted(Arc<Server>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.service.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: listener::Watched) {
        let mut stopped = self.stopped.clone();
        loop {
            let Either::First(accepted) = race(listener.accept(), stopped.changed()).await else { return };
            match accepted {
                Ok(accepted) => self.admit(accepted),
                Err(error) => {
                    // Out of descriptors, most likely: others have to go first.
                    self.service.log.say(
                        "error",
                        "cannot take a connection",
                        json!({"error": error.to_string()}),
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, accepted: Accepted) {
        let metrics = &self.service.metrics;
        let count = metrics.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(self));
        let server = Arc::clone(self);
        tokio::spawn(async move {
            let _counted = counted;
            let refused = match &accepted.refused {
                _ if count >= server.most => {
                    server.service.metrics.refused.fetch_add(1, Ordering::Relaxed);
                    Some(Problem::new(Kind::UNAVAILABLE, "there are too many connections; try again later"))
                }
                Some(why) => Some(Problem::new(Kind::FORBIDDEN, why.clone())),
                None => None,
            };
            if let Some(problem) = &refused {
                let fields = json!({"peer": accepted.peer, "problem": problem.detail});
                server.service.log.say("warn", "connection refused", fields);
            }
            match accepted.stream {
                listener::Stream::Unix(stream) => match refused {
                    Some(problem) => refuse(stream, &problem).await,
                    None => server.converse(stream, accepted.peer).await,
                },
                listener::Stream::Tcp(stream) => {
                    let Some(tls) = server.tls.as_ref().filter(|_| refused.is_none()) else { return };
                    match timeout(HEAD, tls.accept(stream)).await {
                        Ok(Ok(stream)) => server.converse(stream, accepted.peer).await,
                        Ok(Err(error)) => {
                            let fields = json!({"peer": accepted.peer, "error": error.to_string()});
                            server.service.log.say("warn", "TLS failed", fields);
                        }
                        Err(_) => {}
                    }
                }
            }
        });
    }

    /// Answers requests until the client or the server ends.
    async fn converse(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Value,
    ) {
        let peer = Arc::new(peer);
        let answer = service_fn(|request: Request<Incoming>| {
            let (server, peer) = (Arc::clone(self), Arc::clone(&peer));
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, &peer).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), answer)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let mut stopped = self.stopped.clone();
        // A client that broke the protocol or went away is no matter of ours.
        let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
        if let Either::Second(()) = race(connection.as_mut(), stop).await {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(GRACE, connection).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: &Value) -> hyper::Response<crate::body::Body> {
        let began = Instant::now();
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}-{number:x}", std::process::id());
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let mut answer = router::answer(&self.service, request, &id).await;
        let (took, status) = (began.elapsed(), answer.response.status().as_u16());
        self.service.metrics.count(answer.operation, status, took);
        let level = if status >= 500 { "error" } else { "info" };
        let path: String = path.chars().take(300).collect();
        let fields = json!({"request_id": id, "method": method, "path": path, "operation": answer.operation,
            "status": status, "ms": took.as_secs_f64() * 1e3, "peer": peer, "tenant": answer.tenant,
            "problem": answer.problem.map(|problem| problem.detail)});
        self.service.log.say(level, "request", fields);
        if let Ok(value) = HeaderValue::from_str(&id) {
            answer.response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
        }
        answer.response
    }
}

/// Says why a client is not served, without reading what it says.
async fn refuse(mut stream: tokio::net::UnixStream, problem: &Problem) {
    let body = serde_json::to_string(&problem.body("")).unwrap_or_default();
    let status = problem.kind.status;
    let text = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        problem.kind.name,
        crate::reply::PROBLEM,
        body.len()
    );
    let _ = timeout(Duration::from_secs(1), stream.write_all(text.as_bytes())).await;
    let _ = stream.shutdown().await;
}

/// As many descriptors as this process may have.
fn raise_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
