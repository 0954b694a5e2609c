//! The other end of the control socket.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::server::{FILES, MAX_LINE};
use super::{Answer, Done, Refusal, Request};
use crate::snapshot::{Snapshot, WriteError, Writer};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("cannot reach the VMM")]
    Io(#[from] io::Error),
    /// The snapshot's files.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// What came is no answer.
    #[error("the VMM answered with something else than an answer: {0:?}")]
    Nonsense(String),
    /// The VMM's own words.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// A connection to a VMM process.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket `path`. No answer may take longer than `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends `request` and waits for the answer. The files of a snapshot are made here, and its base's state is opened
    /// here: a confined VMM cannot.
    pub fn ask(&mut self, request: &Request) -> Result<Done, ClientError> {
        let Request::Snapshot { dir, base, .. } = request else {
            return self.exchange(request, &[]);
        };
        // Without it the VMM looks for itself, and says what it found.
        let base = base.as_deref().and_then(|base| Snapshot::open_state(base).ok());
        let (writer, state) = Writer::for_other(dir)?;
        let files = [writer.memory(), &state].into_iter().chain(&base);
        let done = self.exchange(request, &files.map(File::as_fd).collect::<Vec<_>>())?;
        writer.name()?;
        Ok(done)
    }

    /// The same, with a descriptor that the VMM gets a duplicate of.
    pub fn ask_with(&mut self, request: &Request, descriptor: BorrowedFd<'_>) -> Result<Done, ClientError> {
        self.exchange(request, &[descriptor])
    }

    /// The descriptors go with the first byte.
    fn exchange(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Done, ClientError> {
        let line = line(request);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(self.stream.get_ref(), &[IoSlice::new(&line)], &mut ancillary, flags);
        let sent = sent.map_err(io::Error::from)?;
        self.stream.get_mut().write_all(&line[sent..])?;
        let mut answer = Vec::new();
        let limit = MAX_LINE as u64;
        self.stream.by_ref().take(limit).read_until(b'\n', &mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_slice(&answer) {
            Ok(Answer::Ok(done)) => Ok(done),
            Ok(Answer::Error(refusal)) => Err(ClientError::Refused(refusal)),
            Err(_) => Err(ClientError::Nonsense(String::from_utf8_lossy(&answer).trim_end().to_owned())),
        }
    }
}

fn line(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).expect("invariant: requests are plain data");
    line.push(b'\n');
    line
}
