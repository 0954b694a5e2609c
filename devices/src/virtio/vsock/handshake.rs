//! The line by which a host client says which guest port it wants: `CONNECT <port>\n`.
//!
//! The bytes after the line belong to the guest, so not one more than the line is taken off the stream.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use super::socket;

/// Longest line, newline included. Stops a client from making the VMM read for ever.
const MAX_LINE: usize = 32;

/// What a client's bytes amount to so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The line is not complete; more may come.
    Partial,
    /// The client wants this guest port.
    Connect(u32),
    /// The client is gone or says something else.
    Refused,
}

/// A client that has not said yet what it wants.
#[derive(Debug)]
pub struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Handshake {
    /// Starts with a non-blocking stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// The stream, positioned after the line once there was [`Progress::Connect`].
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads what has come. The stream has to be polled edge-triggered: it is read until it would block or
    /// the line is complete.
    pub fn advance(&mut self) -> Progress {
        let mut buffer = [0; MAX_LINE];
        loop {
            let count = match socket::peek(&self.stream, &mut buffer) {
                Ok(0) => return Progress::Refused,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Partial,
                Err(_) => return Progress::Refused,
            };
            let seen = buffer.get(..count).unwrap_or_default();
            let line_end = seen.iter().position(|byte| *byte == b'\n');
            let take = line_end.map_or(count, |end| end.saturating_add(1));
            if self.line.len().saturating_add(take) > MAX_LINE || !self.consume(take) {
                return Progress::Refused;
            }
            if line_end.is_some() {
                return parse_line(&self.line).map_or(Progress::Refused, Progress::Connect);
            }
        }
    }

    fn consume(&mut self, count: usize) -> bool {
        let mut piece = vec![0; count];
        if self.stream.read_exact(&mut piece).is_err() {
            return false;
        }
        self.line.append(&mut piece);
        true
    }
}

/// The port in `CONNECT <port>\n`. As in Firecracker, the word counts in any case.
fn parse_line(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut words = text.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    let well_formed = word.eq_ignore_ascii_case("connect")
        && words.next().is_none()
        && port.bytes().all(|byte| byte.is_ascii_digit());
    if well_formed { port.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair() -> (UnixStream, Handshake) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, Handshake::new(server))
    }

    #[test]
    fn lines_that_name_a_port() {
        for (line, port) in [
            ("CONNECT 1024\n", Some(1024)),
            ("connect 4294967295\n", Some(u32::MAX)),
            ("CONNECT 0\r\n", Some(0)),
            ("CONNECT 4294967296\n", None),
            ("CONNECT +1\n", None),
            ("CONNECT -1\n", None),
            ("CONNECT 1 2\n", None),
            ("CONNECT\n", None),
            ("GET / HTTP/1.1\n", None),
            ("\n", None),
            ("CONNECT 1024", None),
        ] {
            assert_eq!(parse_line(line.as_bytes()), port, "{line:?}");
        }
    }

    #[test]
    fn a_line_may_come_in_pieces_and_what_follows_stays_on_the_stream() {
        let (mut client, mut handshake) = pair();
        assert_eq!(handshake.advance(), Progress::Partial);
        client.write_all(b"CONN").unwrap();
        assert_eq!(handshake.advance(), Progress::Partial);
        client.write_all(b"ECT 7\npayload").unwrap();
        assert_eq!(handshake.advance(), Progress::Connect(7));
        let mut rest = [0; 7];
        handshake.into_stream().read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"payload");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut client, mut handshake) = pair();
        client.write_all(&[b' '; MAX_LINE + 1]).unwrap();
        assert_eq!(handshake.advance(), Progress::Refused);
    }

    #[test]
    fn a_client_that_leaves_is_refused() {
        let (client, mut handshake) = pair();
        drop(client);
        assert_eq!(handshake.advance(), Progress::Refused);
    }
}
