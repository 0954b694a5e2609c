//! A process behind a server, for a caller who stays with it.

use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use engine::session::peer::{Proxy, Said};
use engine::session::{Outcome, SessionError};
use engine::{ExitStatus, FailureKind, HostMessage};

use crate::session::{End, frame, kind, parse};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
const SIGHUP: u8 = 1;
const SIGKILL: u8 = 9;

/// What asks the process to end in order.
pub type Stop = Box<dyn Fn() + Send>;

/// A connection that has become a stream of frames.
pub struct Frames {
    stream: UnixStream,
    received: Vec<u8>,
    waiting: Vec<u8>,
    /// Something was read with the answer's head, and nobody will say that there is something to read.
    early: bool,
    stop: Option<Stop>,
}

impl Frames {
    /// Of what [`super::Client::upgrade`] gave. Where there is no `stop`, SIGHUP is.
    pub fn new(connection: BufReader<UnixStream>, stop: Option<Stop>) -> Result<Self, SessionError> {
        let received = connection.buffer().to_vec();
        let stream = connection.into_inner();
        stream.set_nonblocking(true).map_err(host)?;
        Ok(Self { stream, early: !received.is_empty(), received, waiting: Vec::new(), stop })
    }

    fn send(&mut self, kind: u8, bytes: &[u8]) -> Result<(), SessionError> {
        self.waiting.extend(frame(kind, bytes));
        self.flush()
    }

    fn flush(&mut self) -> Result<(), SessionError> {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the server said before it went is still to be read.
                Err(_) => self.waiting.clear(),
            }
        }
        Ok(())
    }

    /// The whole frames that were received.
    fn said(&mut self) -> Result<Vec<Said>, SessionError> {
        let mut all = Vec::new();
        let mut done = 0;
        let wrong = |why: &dyn std::fmt::Display| SessionError::Lost(format!("the server said {why}"));
        while let Some((kind, body, length)) =
            parse(self.received.get(done..).unwrap_or_default()).map_err(|error| wrong(&error))?
        {
            match (kind, body) {
                (kind::STDOUT, bytes) => all.push(Said::Stdout(bytes.to_vec())),
                (kind::STDERR, bytes) => all.push(Said::Stderr(bytes.to_vec())),
                (kind::NOTICE, text) => all.push(Said::Notice(String::from_utf8_lossy(text).into_owned())),
                (kind::STARTED, []) => all.push(Said::Started),
                (kind::CREDIT, bytes) => {
                    let bytes = bytes.try_into().map_err(|_| wrong(&"a credit that is none"))?;
                    all.push(Said::StdinCredit(u32::from_be_bytes(bytes)));
                }
                (kind::END, text) => {
                    all.extend(ended(serde_json::from_slice(text).map_err(|error| wrong(&error))?));
                }
                // What a newer server says beside.
                _ => {}
            }
            done += length;
        }
        self.received.drain(..done);
        Ok(all)
    }
}

impl Proxy for Frames {
    fn receive(&mut self) -> Result<Option<Vec<Said>>, SessionError> {
        self.flush()?;
        self.early = false;
        let mut chunk = vec![0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Ok(Some(self.said()?).filter(|said| !said.is_empty())),
            Ok(count) => self.received.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return Ok(None),
        }
        self.said().map(Some)
    }

    fn say(&mut self, message: HostMessage) -> Result<(), SessionError> {
        match message {
            HostMessage::Stdin(bytes) => self.send(kind::STDIN, &bytes),
            HostMessage::StdinEof => self.send(kind::STDIN, b""),
            HostMessage::Signal(signal) => {
                u8::try_from(signal).map_or(Ok(()), |signal| self.send(kind::SIGNAL, &[signal]))
            }
            HostMessage::Resize(size) => {
                self.send(kind::SIZE, &[size.rows.to_be_bytes(), size.columns.to_be_bytes()].concat())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, now: bool) -> Result<(), SessionError> {
        match &self.stop {
            Some(stop) if !now => {
                stop();
                Ok(())
            }
            _ => self.send(kind::SIGNAL, &[if now { SIGKILL } else { SIGHUP }]),
        }
    }

    fn is_waiting(&self) -> bool {
        self.early || !self.waiting.is_empty()
    }
}

impl AsFd for Frames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The end, and before it what is to be said of it and has no place in it.
fn ended(end: End) -> Vec<Said> {
    let kind = match end.exit_code {
        127 => FailureKind::NotFound,
        126 => FailureKind::NotExecutable,
        _ => FailureKind::Agent,
    };
    let exited = Said::Ended(Outcome::Exited(ExitStatus::Code(end.exit_code)));
    match end.error {
        None => vec![exited],
        Some(message) if (125..=127).contains(&end.exit_code) => {
            vec![Said::Ended(Outcome::NotStarted { kind, message })]
        }
        Some(text) => vec![Said::Notice(text), exited],
    }
}

fn host(source: std::io::Error) -> SessionError {
    SessionError::Host { action: "use the connection to the server", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Frames) {
        let (server, ours) = UnixStream::pair().unwrap();
        (server, Frames::new(BufReader::new(ours), None).unwrap())
    }

    #[test]
    fn frames_become_words_and_the_end_keeps_its_code() {
        let (mut server, mut frames) = pair();
        let end = br#"{"exit_code":127,"error":"no such program"}"#;
        let all = [frame(kind::STARTED, b""), frame(99, b"new"), frame(kind::END, end)].concat();
        server.write_all(&all[..9]).unwrap();
        assert_eq!(frames.receive().unwrap(), Some(vec![Said::Started]));
        server.write_all(&all[9..]).unwrap();
        let said = frames.receive().unwrap().unwrap();
        let [Said::Ended(outcome)] = said.as_slice() else { panic!("no end: {said:?}") };
        assert_eq!((outcome.exit_code(), outcome.problem()), (127, Some("no such program")));
        assert_eq!(frames.receive().unwrap(), Some(vec![]));
        drop(server);
        assert_eq!(frames.receive().unwrap(), None);
        assert_eq!(ended(End { exit_code: 137, error: Some("x".into()) }).len(), 2);
    }

    #[test]
    fn what_came_with_the_head_is_not_waited_for() {
        let (mut server, ours) = UnixStream::pair().unwrap();
        server.write_all(&[b"h".to_vec(), frame(kind::STDOUT, b"x")].concat()).unwrap();
        let mut reader = BufReader::new(ours);
        reader.read_exact(&mut [0]).unwrap();
        let mut frames = Frames::new(reader, None).unwrap();
        assert!(frames.is_waiting());
        assert_eq!(frames.receive().unwrap(), Some(vec![Said::Stdout(b"x".to_vec())]));
        assert!(!frames.is_waiting());
    }

    #[test]
    fn a_server_that_does_not_read_makes_stdin_wait_and_one_that_lies_is_left() {
        let (mut server, mut frames) = pair();
        while !frames.is_waiting() {
            frames.say(HostMessage::Stdin(vec![0; 60 << 10])).unwrap();
        }
        server.write_all(&[kind::STDOUT, 0xff, 0, 0, 0]).unwrap();
        assert!(frames.receive().is_err());
    }
}
