//! Attach and exec: the streams of a process over the connection of an HTTP request that was upgraded.
//!
//! ```text
//! frame = kind (1 byte) │ length (u32, big-endian) │ bytes
//! client: 0 stdin (no bytes: its end)   3 signal (its number, 1 byte)   4 terminal size (rows, columns: u16 each)
//! server: 1 stdout   2 stderr   5 a notice (text)   6 the end (JSON: exit_code, error), the last one
//!         7 the process runs (no bytes)   8 so much stdin was handed on (u32)
//! ```

use std::io;
use std::os::fd::OwnedFd;

use engine::session::Outcome;
use engine::session::peer::{Peer, Said};
use engine::{HostMessage, MAX_CHUNK, STDIN_WINDOW, TerminalSize};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::body::Body;
use crate::problem::{Kind, Problem};
use crate::race::{Either, race};
use crate::reply::{self, Reply};
use crate::watched::watched;

/// What a client asks the connection to become.
pub const PROTOCOL: &str = "lighter-frames";
/// Longest frame that a client may send; stdin may come in as many as it wants.
pub const MAX_FRAME: usize = 64 << 10;
/// Bytes before each frame's own.
pub const HEADER: usize = 5;
/// Output that is collected for an answer.
pub const MAX_COLLECTED: usize = 1 << 20;

/// Kinds of frames.
pub mod kind {
    /// Bytes for stdin; none are its end.
    pub const STDIN: u8 = 0;
    /// Bytes of stdout.
    pub const STDOUT: u8 = 1;
    /// Bytes of stderr.
    pub const STDERR: u8 = 2;
    /// A signal for the process.
    pub const SIGNAL: u8 = 3;
    /// The terminal's size.
    pub const SIZE: u8 = 4;
    /// Something that the user should know.
    pub const NOTICE: u8 = 5;
    /// The end.
    pub const END: u8 = 6;
    /// The process runs.
    pub const STARTED: u8 = 7;
    /// Bytes of stdin that were handed on.
    pub const CREDIT: u8 = 8;
}

/// How a process ended.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct End {
    /// Its exit code, as `lighter run` would have it.
    pub exit_code: u8,
    /// Why it ended, where the exit code does not say.
    #[serde(default)]
    pub error: Option<String>,
}

impl From<&Outcome> for End {
    fn from(outcome: &Outcome) -> Self {
        Self { exit_code: outcome.exit_code(), error: outcome.problem().map(str::to_owned) }
    }
}

/// A frame.
pub fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// Kind and bytes of a frame, and its length with its header.
pub type Parsed<'a> = (u8, &'a [u8], usize);

/// The first frame of `bytes`, and how long it is; `None` where it is not whole yet.
pub fn parse(bytes: &[u8]) -> Result<Option<Parsed<'_>>, TooLong> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let [kind, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(TooLong(length));
    }
    Ok(rest.get(..length).map(|body| (kind, body, HEADER + length)))
}

/// A frame is longer than any may be.
#[derive(Debug, thiserror::Error)]
#[error("a frame of {0} bytes is longer than any may be")]
pub struct TooLong(pub usize);

/// What is at the other end, to be waited for without a thread.
pub struct Session {
    peer: Peer,
    ready: AsyncFd<OwnedFd>,
}

impl Session {
    /// With `peer`.
    pub fn new(peer: Peer) -> Result<Self, Problem> {
        let runtime = tokio::runtime::Handle::current();
        let _inside = runtime.enter();
        let ready = watched(&peer)?;
        Ok(Self { peer, ready })
    }

    /// What is said next; `None` once the other end is closed. What waits to be sent is sent meanwhile.
    pub async fn said(&mut self) -> Result<Option<Vec<Said>>, Problem> {
        loop {
            let interest = match self.peer.is_waiting() {
                true => tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE,
                false => tokio::io::Interest::READABLE,
            };
            let mut ready = self.ready.ready(interest).await?;
            match self.peer.receive()? {
                Some(said) if said.is_empty() => ready.clear_ready(),
                said => return Ok(said),
            }
        }
    }

    /// Waits for the end and gives what was written until then, not more than [`MAX_COLLECTED`] of each stream.
    pub async fn collect(mut self, stdin: Vec<u8>) -> Result<(End, [Vec<u8>; 2]), Problem> {
        let mut output = [Vec::new(), Vec::new()];
        let mut input = Input::new(stdin);
        let keep = |kept: &mut Vec<u8>, bytes: Vec<u8>| {
            let room = MAX_COLLECTED.saturating_sub(kept.len());
            kept.extend(bytes.into_iter().take(room));
        };
        while let Some(all) = self.said().await? {
            for said in all {
                match said {
                    Said::Stdout(bytes) => keep(&mut output[0], bytes),
                    Said::Stderr(bytes) => keep(&mut output[1], bytes),
                    Said::StdinCredit(bytes) => input.add_credit(bytes),
                    Said::Started => input.started = true,
                    Said::Ended(outcome) => return Ok((End::from(&outcome), output)),
                    _ => {}
                }
            }
            input.send(&mut self.peer)?;
        }
        Ok((lost(), output))
    }

    /// Makes a stream of the client's connection.
    pub fn upgrade(self, upgrade: OnUpgrade) -> Reply {
        tokio::runtime::Handle::current().spawn(async move {
            // A client that is gone takes its process's streams with it, and nothing else.
            if let Ok(connection) = upgrade.await {
                let _ = self.relay(TokioIo::new(connection)).await;
            }
        });
        let response = reply::response(101, None, Body::empty());
        Reply::Ready(Box::new(response)).with("connection", "Upgrade").with("upgrade", PROTOCOL)
    }

    async fn relay(mut self, client: impl AsyncRead + AsyncWrite) -> Result<(), Problem> {
        let (mut from, mut to) = tokio::io::split(client);
        let mut input = Input { ended: false, ..Input::new(Vec::new()) };
        let mut received = Vec::new();
        let mut gone = false;
        let end = loop {
            // Nothing is read from a client whose process does not read.
            let mut chunk = [0; 16 << 10];
            let read = async {
                match input.bytes.len() < STDIN_WINDOW && !gone {
                    true => from.read(&mut chunk).await,
                    false => std::future::pending().await,
                }
            };
            let event = {
                let said = self.said();
                race(said, read).await
            };
            match event {
                Either::First(said) => match said? {
                    None => break lost(),
                    Some(all) => {
                        let mut frames = Vec::new();
                        let mut end = None;
                        for said in all {
                            match said {
                                Said::Stdout(bytes) => frames.extend(frame(kind::STDOUT, &bytes)),
                                Said::Stderr(bytes) => frames.extend(frame(kind::STDERR, &bytes)),
                                Said::Notice(text) => frames.extend(frame(kind::NOTICE, text.as_bytes())),
                                Said::StdinCredit(bytes) => input.add_credit(bytes),
                                Said::Started => {
                                    input.started = true;
                                    frames.extend(frame(kind::STARTED, b""));
                                }
                                Said::Ended(outcome) => end = Some(End::from(&outcome)),
                                Said::Phases(..) => {}
                            }
                        }
                        // A client that does not read makes the process wait.
                        to.write_all(&frames).await?;
                        if let Some(end) = end {
                            break end;
                        }
                    }
                },
                Either::Second(count) => match count? {
                    0 => gone = true,
                    count => received.extend_from_slice(&chunk[..count]),
                },
            }
            while let Some((kind, body, length)) = parse(&received).map_err(io::Error::other)? {
                match (kind, body) {
                    (kind::STDIN, []) => input.ended = true,
                    (kind::STDIN, bytes) => input.bytes.extend_from_slice(bytes),
                    (kind::SIGNAL, [signal]) => self.peer.say(HostMessage::Signal(i32::from(*signal)))?,
                    (kind::SIZE, &[r0, r1, c0, c1]) => {
                        let (rows, columns) = (u16::from_be_bytes([r0, r1]), u16::from_be_bytes([c0, c1]));
                        self.peer.say(HostMessage::Resize(TerminalSize { rows, columns }))?;
                    }
                    _ => return Err(Problem::invalid("what came is no frame of a client")),
                }
                received.drain(..length);
            }
            let sent = input.send(&mut self.peer)?;
            if sent > 0 && !gone {
                to.write_all(&frame(kind::CREDIT, &sent.to_be_bytes())).await?;
            }
            if gone && !input.ended {
                // The client is away: its process goes on without it.
                return Ok(());
            }
        };
        let end = serde_json::to_vec(&end).unwrap_or_default();
        to.write_all(&frame(kind::END, &end)).await?;
        Ok(to.shutdown().await?)
    }
}

/// The container ended, and everything in it was killed.
fn lost() -> End {
    End { exit_code: 137, error: Some("the container ended, and everything in it was killed".to_owned()) }
}

/// Stdin on its way, never faster than the agent allows.
struct Input {
    bytes: Vec<u8>,
    credit: usize,
    ended: bool,
    closed: bool,
    started: bool,
}

impl Input {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, credit: STDIN_WINDOW, ended: true, closed: false, started: false }
    }

    /// A hostile agent gets no more than the protocol's window in flight.
    fn add_credit(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes as usize).min(STDIN_WINDOW);
    }

    /// Hands on what may be, and gives how many bytes that were.
    fn send(&mut self, peer: &mut Peer) -> Result<u32, Problem> {
        let mut sent = 0;
        if !self.started {
            return Ok(sent);
        }
        while self.credit > 0 && !self.bytes.is_empty() {
            let count = self.bytes.len().min(self.credit).min(MAX_CHUNK);
            self.credit -= count;
            sent += count as u32;
            peer.say(HostMessage::Stdin(self.bytes.drain(..count).collect()))?;
        }
        if self.ended && self.bytes.is_empty() && !std::mem::replace(&mut self.closed, true) {
            peer.say(HostMessage::StdinEof)?;
        }
        Ok(sent)
    }
}

/// The client's connection as a stream, or what it has to send.
pub fn wanted(call: &mut crate::call::Call) -> Result<OnUpgrade, Problem> {
    let asked = call.header("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL));
    let missing = || {
        Problem::new(Kind::UPGRADE, format!("send the headers Connection: Upgrade and Upgrade: {PROTOCOL}"))
    };
    call.upgrade.take().filter(|_| asked).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_anywhere_and_bounded() {
        let bytes = [frame(kind::STDIN, b"hello"), frame(kind::SIGNAL, &[15])].concat();
        for cut in 0..10 {
            assert!(parse(&bytes[..cut]).unwrap().is_none());
        }
        let (kind, body, length) = parse(&bytes).unwrap().unwrap();
        assert_eq!((kind, body), (kind::STDIN, &b"hello"[..]));
        assert_eq!(parse(&bytes[length..]).unwrap().unwrap().1, [15]);
        assert!(parse(&[0, 0xff, 0, 0, 0]).is_err());
    }
}
