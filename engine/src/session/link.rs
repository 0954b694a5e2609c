//! Frames to and from an agent, or between a keeper and its clients, over a non-blocking stream.

use std::io::{self, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use agent_protocol::frame::{self, Decoder, FrameError};
use agent_protocol::message::{AgentMessage, HostMessage};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes read from the agent at once.
const READ_CHUNK: usize = 64 << 10;
/// Bytes that may wait for a peer that does not read: beyond, what may be dropped is.
const MAX_WAITING: usize = 1 << 20;

/// Longest answer of the VMM to `CONNECT`: `OK`, a port number, a line end.
const MAX_ANSWER: usize = 32;

/// Why the session with the agent broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection.
    #[error("the connection to the agent broke")]
    Io(#[from] io::Error),
    /// The VMM did not connect us to the agent.
    #[error("the VMM did not connect us to the agent: it said {0:?}")]
    Refused(String),
    /// What came, or what should go, is no frame.
    #[error("the session with the agent broke")]
    Frame(#[from] FrameError),
}

/// What one look at the connection found.
#[derive(Debug, PartialEq)]
pub enum Received<R = AgentMessage> {
    /// These messages, in order; maybe none.
    Messages(Vec<R>),
    /// The peer's side is closed.
    End,
}

/// One session, in which we say `S` and hear `R`; with an agent unless said otherwise.
#[derive(Debug)]
pub struct Link<S = HostMessage, R = AgentMessage> {
    stream: UnixStream,
    /// The VMM's answer to `CONNECT` as far as it came; `None` once it is complete, or where none comes.
    answer: Option<Vec<u8>>,
    decoder: Decoder,
    waiting: Vec<u8>,
    _messages: PhantomData<fn(S) -> R>,
}

impl<S: Serialize, R: DeserializeOwned> Link<S, R> {
    /// A session over `stream`.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            answer: None,
            decoder: Decoder::default(),
            waiting: Vec::new(),
            _messages: PhantomData,
        })
    }

    /// A session with whoever listens on `port` in the guest, through the socket `vsock` of its VMM. Messages may
    /// be sent at once: they wait in the socket until the guest takes the connection.
    pub fn dial(vsock: &Path, port: u32) -> io::Result<Self> {
        let mut link = Self::new(UnixStream::connect(vsock)?)?;
        link.answer = Some(Vec::new());
        link.waiting = format!("CONNECT {port}\n").into_bytes();
        Ok(link)
    }

    /// Reads once, without waiting.
    pub fn receive(&mut self) -> Result<Received<R>, LinkError> {
        let mut buffer = [0; READ_CHUNK];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return Ok(Received::End),
            Ok(count) => count,
            Err(error) if is_temporary(&error) => return Ok(Received::Messages(Vec::new())),
            // What the VMM's death does to a stream with unread bytes in it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::End),
            Err(error) => return Err(error.into()),
        };
        let frames = self.after_answer(buffer.get(..count).unwrap_or_default())?;
        self.decoder.push(frames);
        let mut messages = Vec::new();
        while let Some(message) = self.decoder.next_message()? {
            messages.push(message);
        }
        Ok(Received::Messages(messages))
    }

    /// What of `bytes` follows the VMM's answer to `CONNECT`.
    fn after_answer<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], LinkError> {
        let Some(answer) = &mut self.answer else { return Ok(bytes) };
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |newline| newline + 1);
        let (line, rest) = bytes.split_at(end);
        answer.extend_from_slice(line);
        let complete = answer.ends_with(b"\n");
        if (complete && !answer.starts_with(b"OK ")) || answer.len() > MAX_ANSWER {
            let said = answer.get(..answer.len().min(MAX_ANSWER)).unwrap_or_default();
            return Err(LinkError::Refused(String::from_utf8_lossy(said).trim_end().to_owned()));
        }
        if complete {
            self.answer = None;
        }
        Ok(rest)
    }

    /// Sends `message`, now or when the stream can take it.
    pub fn send(&mut self, message: &S) -> Result<(), LinkError> {
        frame::encode(message, &mut self.waiting)?;
        self.flush()
    }

    /// Sends `message` unless the guest has not read for long.
    pub fn send_if_room(&mut self, message: &S) -> Result<(), LinkError> {
        if self.waiting.len() < MAX_WAITING { self.send(message) } else { Ok(()) }
    }

    /// How many bytes wait to be written.
    pub fn pending(&self) -> usize {
        self.waiting.len()
    }

    /// Whether something waits to be written. Poll the descriptor for writing while it does.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes what the stream takes. A guest that is gone takes everything: reading tells of its end.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
                    self.waiting.clear();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl<S, R> AsFd for Link<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Link::new(ours).unwrap(), theirs)
    }

    #[test]
    fn messages_arrive_and_then_the_end() {
        let (mut link, mut agent) = pair();
        assert_eq!(link.receive().unwrap(), Received::Messages(Vec::new()));
        let message = AgentMessage::Stdout(b"hello".to_vec());
        let mut bytes = Vec::new();
        frame::encode(&message, &mut bytes).unwrap();
        agent.write_all(&bytes).unwrap();
        assert_eq!(link.receive().unwrap(), Received::Messages(vec![message]));
        drop(agent);
        assert_eq!(link.receive().unwrap(), Received::End);
        link.send(&HostMessage::Signal(15)).unwrap();
        assert!(!link.is_waiting());
    }

    #[test]
    fn what_the_guest_does_not_read_is_bounded() {
        let (mut link, _agent) = pair();
        let chunk = HostMessage::Stdin(vec![0; 60_000]);
        for _ in 0..100 {
            link.send_if_room(&chunk).unwrap();
        }
        assert!(link.is_waiting() && link.waiting.len() < MAX_WAITING + 70_000);
    }

    #[test]
    fn a_dialled_session_begins_after_the_answer_however_it_is_cut() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("v.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut link = Link::dial(&path, 1024).unwrap();
        link.send(&HostMessage::StdinEof).unwrap();
        let (mut vmm, _) = listener.accept().unwrap();
        let mut request = [0; 13];
        vmm.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"CONNECT 1024\n");
        vmm.write_all(b"OK 10").unwrap();
        assert_eq!(link.receive().unwrap(), Received::Messages(Vec::new()));
        let message = AgentMessage::Started { pid: 1 };
        let mut bytes = b"24\n".to_vec();
        frame::encode(&message, &mut bytes).unwrap();
        vmm.write_all(&bytes).unwrap();
        assert_eq!(link.receive().unwrap(), Received::Messages(vec![message]));
    }

    #[test]
    fn a_refused_session_says_what_the_vmm_said() {
        let (mut link, mut vmm) = pair();
        link.answer = Some(Vec::new());
        vmm.write_all(b"NO\n").unwrap();
        assert!(link.receive().unwrap_err().to_string().contains("\"NO\""));
    }

    #[test]
    fn what_is_no_frame_ends_the_session() {
        let (mut link, mut agent) = pair();
        agent.write_all(&[0xff; 64]).unwrap();
        assert!(matches!(link.receive(), Err(LinkError::Frame(_))));
    }
}
