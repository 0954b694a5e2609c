//! Bytes between a thread that reads and writes as files do, and a client that takes its time.

use std::io::{self, Read, Write};
use std::time::Duration;

use hyper::body::{Body as _, Bytes, Incoming};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::body::WAITING;
use crate::problem::{Kind, Problem};
use crate::reply::{EVENTS, Reply};

/// A client that neither sends nor takes anything for so long is given up.
pub const STALL: Duration = Duration::from_secs(30);
/// Bytes of an answer that are sent together.
const CHUNK: usize = 64 << 10;

/// The next part of a request's body.
pub async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Problem> {
    loop {
        let frame = timeout(
            STALL,
            std::future::poll_fn(|context| std::pin::Pin::new(&mut *body).poll_frame(context)),
        );
        match frame.await {
            Err(_) => return Err(Problem::new(Kind::TIMEOUT, "the body stopped coming")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(Problem::invalid("the body broke off")),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A whole body of at most `most` bytes.
pub async fn whole(body: &mut Incoming, most: usize) -> Result<Vec<u8>, Problem> {
    let long = || Problem::new(Kind::TOO_LARGE, format!("the body is longer than {most} bytes"));
    if body.size_hint().lower() > most as u64 {
        return Err(long());
    }
    let mut bytes = Vec::new();
    while let Some(data) = next_data(body).await? {
        if bytes.len() + data.len() > most {
            return Err(long());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// A request's body for a thread to read.
#[derive(Debug)]
pub struct Upload {
    chunks: mpsc::Receiver<Result<Bytes, Problem>>,
    current: Bytes,
    /// Why it ended too early.
    pub broken: Option<Problem>,
    left: u64,
}

impl Upload {
    /// Reads `body` from now on, ahead of the thread by a few chunks; at most `most` bytes of it.
    pub fn new(mut body: Incoming, most: u64) -> Self {
        let (sender, chunks) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Some(data) = next_data(&mut body).await.transpose() {
                let ended = data.is_err();
                if sender.send(data).await.is_err() || ended {
                    return;
                }
            }
        });
        Self { chunks, current: Bytes::new(), broken: None, left: most }
    }
}

impl Read for Upload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(Ok(data)) => self.current = data,
                Some(Err(problem)) => {
                    let detail = problem.detail.clone();
                    self.broken = Some(problem);
                    return Err(io::Error::other(detail));
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        let Some(left) = self.left.checked_sub(count as u64) else {
            let detail = "the tenant's disk quota has no room for this";
            self.broken = Some(Problem::new(Kind::QUOTA, detail));
            return Err(io::Error::other(detail));
        };
        self.left = left;
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// What a thread says to a client.
#[derive(Debug)]
pub struct Outlet {
    sender: mpsc::Sender<Result<Bytes, Problem>>,
    runtime: Handle,
    buffer: Vec<u8>,
}

impl Outlet {
    /// A client hears of this at once; an error where nobody listens any more.
    pub fn event(&mut self, name: &str, data: &impl Serialize) -> io::Result<()> {
        let data = serde_json::to_string(data)?;
        write!(self, "event: {name}\ndata: {data}\n\n")?;
        self.flush()
    }

    fn send(&self, item: Result<Bytes, Problem>) -> io::Result<()> {
        let sent = self.runtime.block_on(async { timeout(STALL, self.sender.send(item)).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.buffer) {
            empty if empty.is_empty() => Ok(()),
            bytes => self.send(Ok(bytes.into())),
        }
    }
}

/// Answers with what `work` writes, on a thread of its own. A problem before the first byte is answered as one, later it
/// breaks the connection off.
pub fn download(
    kind: &'static str,
    work: impl FnOnce(&mut Outlet) -> Result<(), Problem> + Send + 'static,
) -> Reply {
    let (sender, mut chunks) = mpsc::channel(WAITING);
    let runtime = Handle::current();
    let mut outlet = Outlet { sender, runtime: runtime.clone(), buffer: Vec::new() };
    runtime.spawn_blocking(move || {
        let done = work(&mut outlet).and_then(|()| Ok(outlet.flush()?));
        if let Err(problem) = done {
            let _ = outlet.send(Err(problem));
        }
    });
    Reply::Later(Box::pin(async move {
        match chunks.recv().await {
            None => Ok(Reply::stream(kind, None, chunks)),
            Some(Err(problem)) => Err(problem),
            Some(Ok(first)) => Ok(Reply::stream(kind, Some(first), chunks)),
        }
    }))
}

/// The same for events; a problem on the way is the last one.
pub fn events(work: impl FnOnce(&mut Outlet) -> Result<(), Problem> + Send + 'static) -> Reply {
    download(EVENTS, move |outlet| {
        // Says at once that there is a stream.
        outlet.write_all(b":\n\n").and_then(|()| outlet.flush())?;
        if let Err(problem) = work(outlet) {
            outlet.event("problem", &problem.body(""))?;
        }
        Ok(())
    })
}
