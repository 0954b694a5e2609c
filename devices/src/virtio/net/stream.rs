//! A stream socket behind the device: frames behind their length, four bytes, big endian.
//!
//! ```text
//! guest: header (12 bytes) frame  ⇄  socket: length (4 bytes) frame
//! ```
//!
//! The other end, a user-mode network, opens sockets on the host for what the guest sends. It does so with the
//! addresses in the frames, so a guest could call what listens on the host's loopback: no such frame leaves here.
//! Frames are copied once in each direction; the other end controls the bytes that are received.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::header::{HEADER_SIZE, MAX_FRAME};
use super::tap::FrameIo;
use crate::virtio::guest_buffers::{GuestBuffers, IoVecs};

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Bytes that are received at once: some frames of common size.
const CHUNK: usize = 64 << 10;
/// What a frame's header says to the driver: nothing.
const HEADER: [u8; HEADER_SIZE] = [0; HEADER_SIZE];

/// Frames over a Unix stream socket.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// What was received, from `start` on: at most one frame that is not whole, and [`CHUNK`] bytes.
    input: Vec<u8>,
    start: usize,
    /// What the socket has not taken yet: less than one frame.
    output: Vec<u8>,
}

impl Stream {
    /// Over the connected socket `fd`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from(fd);
        // Refuses what is no socket.
        socket.local_addr()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, input: Vec::new(), start: 0, output: Vec::new() })
    }

    /// The next whole frame that was received, as its place in `input`.
    fn whole_frame(&self) -> io::Result<Option<std::ops::Range<usize>>> {
        let Some((length, _)) =
            self.input.get(self.start..).and_then(|rest| rest.split_first_chunk::<LENGTH>())
        else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let begin = self.start.saturating_add(LENGTH);
        let end = begin.saturating_add(length);
        Ok((end <= self.input.len()).then_some(begin..end))
    }

    fn fill(&mut self) -> io::Result<()> {
        self.input.drain(..self.start);
        self.start = 0;
        let filled = self.input.len();
        self.input.resize(filled.saturating_add(CHUNK), 0);
        let result = loop {
            match self.socket.read(self.input.get_mut(filled..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.input.truncate(filled.saturating_add(*result.as_ref().unwrap_or(&0)));
        match result? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl FrameIo for Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn set_offloads(&self, _: libc::c_uint) -> io::Result<()> {
        Ok(())
    }

    fn has_offloads(&self) -> bool {
        false
    }

    fn receive(&mut self, vecs: &mut IoVecs<'_>) -> io::Result<usize> {
        let frame = loop {
            match self.whole_frame()? {
                Some(frame) => break frame,
                None => self.fill()?,
            }
        };
        self.start = frame.end;
        let frame = self.input.get(frame).unwrap_or_default();
        let count = vecs.copy_from(&HEADER);
        Ok(count.saturating_add(vecs.after(count).copy_from(frame)))
    }

    fn send(&mut self, frame: &GuestBuffers<'_>) -> io::Result<()> {
        if self.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = frame.len().saturating_sub(HEADER_SIZE);
        let prefix = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?.to_be_bytes();
        self.output.extend(prefix);
        self.output.resize(LENGTH.saturating_add(length), 0);
        frame.copy_to(HEADER_SIZE, self.output.get_mut(LENGTH..).unwrap_or_default());
        if length < MIN_FRAME || is_for_loopback(self.output.get(LENGTH..).unwrap_or_default()) {
            self.output.clear();
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // What the socket does not take now is kept, so the guest's buffer is free in any case.
        self.flush().map(drop)
    }

    fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => {
                    self.output.clear();
                    return Err(error);
                }
            }
        }
        Ok(false)
    }
}

/// Whether an Ethernet frame is addressed to what a socket of the host takes for the host itself.
fn is_for_loopback(frame: &[u8]) -> bool {
    let field = |at: usize| frame.get(at..).unwrap_or_default();
    match field(12).first_chunk::<2>() {
        Some([0x08, 0x00]) => field(30).first_chunk::<4>().is_some_and(|address| {
            let address = Ipv4Addr::from(*address);
            // The whole of 0.0.0.0/8 is "this host" (RFC 1122, section 3.2.1.3).
            address.is_loopback() || address.octets().first() == Some(&0)
        }),
        Some([0x86, 0xdd]) => field(38).first_chunk::<16>().is_some_and(|address| {
            // ::, ::1 and IPv4 addresses in IPv6 form.
            Ipv6Addr::from(*address).octets().iter().take(10).all(|byte| *byte == 0)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::from_fd(ours.into()).unwrap(), theirs)
    }

    fn receive(stream: &mut Stream, room: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0xee; room];
        let mut vecs = IoVecs::new();
        vecs.push_host(&mut buffer);
        let count = stream.receive(&mut vecs)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_come_whole_whatever_the_pieces() {
        let frames: Vec<Vec<u8>> = [14, 60, 1514, 65_000].map(|len| vec![len as u8; len]).into();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        for piece in [1, 7, 1000] {
            let (mut stream, mut other) = pair();
            let mut found = Vec::new();
            for part in bytes.chunks(piece) {
                other.write_all(part).unwrap();
                while let Ok(frame) = receive(&mut stream, HEADER_SIZE + MAX_FRAME) {
                    assert_eq!(frame[..HEADER_SIZE], HEADER);
                    found.push(frame[HEADER_SIZE..].to_vec());
                }
            }
            assert!(found == frames, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_breaks_the_wire() {
        for length in [0, 13, MAX_FRAME as u32 + 1, u32::MAX] {
            let (mut stream, mut other) = pair();
            other.write_all(&length.to_be_bytes()).unwrap();
            let error = receive(&mut stream, 2000).unwrap_err();
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{length}");
        }
        let (mut stream, other) = pair();
        drop(other);
        assert_eq!(receive(&mut stream, 2000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_descriptor_that_is_no_socket_is_refused() {
        assert!(Stream::from_fd(tempfile::tempfile().unwrap().into()).is_err());
    }

    #[test]
    fn frames_for_the_hosts_loopback_are_known() {
        let four = |address: [u8; 4]| {
            let mut frame = vec![0; 60];
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[30..34].copy_from_slice(&address);
            is_for_loopback(&frame)
        };
        assert!(four([127, 0, 0, 1]) && four([127, 9, 9, 9]) && four([0, 0, 0, 0]) && four([0, 1, 2, 3]));
        assert!(!four([10, 0, 2, 2]) && !four([255, 255, 255, 255]));
        let six = |address: &str| {
            let mut frame = vec![0; 60];
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[38..54].copy_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
            is_for_loopback(&frame)
        };
        assert!(six("::1") && six("::") && six("::ffff:127.0.0.1"));
        assert!(!six("fe80::1") && !six("64:ff9b::1"));
        assert!(!is_for_loopback(&[8, 0]) && !is_for_loopback(&[]));
    }
}
