//! The host's end of a connection: a Unix socket, and what its reader has not taken yet.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::header::HEADER_SIZE;
use super::socket;
use crate::virtio::guest_buffers::{GuestBuffers, IoVecs};

/// What a read from the host gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes.
    Data(u32),
    /// Nothing now.
    Nothing,
    /// The host sends no more.
    End,
    /// The socket is broken.
    Broken,
}

/// The host reads no more: nothing can be delivered to it.
#[derive(Debug)]
pub struct ReaderGone;

/// A non-blocking stream with the bytes that wait for room in it.
#[derive(Debug)]
pub struct HostEnd {
    stream: UnixStream,
    /// From the guest, not yet taken by the host; the guest's credit bounds it.
    held: VecDeque<u8>,
}

impl HostEnd {
    /// Takes over a non-blocking stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, held: VecDeque::new() }
    }

    /// The socket, for polling.
    pub fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether the host has everything.
    pub fn is_flushed(&self) -> bool {
        self.held.is_empty()
    }

    /// Reads at most `limit` bytes, which is not zero, into `target` behind the header.
    pub fn receive(&self, target: &GuestBuffers<'_>, limit: usize) -> Received {
        let mut vecs = IoVecs::new();
        vecs.push_guest(target, HEADER_SIZE, limit);
        match vecs.read_from(self.stream.as_fd()) {
            Ok(0) => Received::End,
            Ok(count) => {
                target.mark_dirty(HEADER_SIZE, count);
                u32::try_from(count).map_or(Received::Broken, Received::Data)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::Broken,
        }
    }

    /// Gives the host the `len` bytes behind the header of `packet` and returns how many it took at once.
    /// The others are held.
    pub fn send(&mut self, packet: &GuestBuffers<'_>, len: u32) -> Result<u32, ReaderGone> {
        let total = usize::try_from(len).map_err(|_| ReaderGone)?;
        let taken = if self.held.is_empty() && total > 0 { self.send_now(packet, total)? } else { 0 };
        let mut rest = vec![0; total.saturating_sub(taken)];
        packet.copy_to(HEADER_SIZE.saturating_add(taken), &mut rest);
        self.held.extend(rest);
        u32::try_from(taken).map_err(|_| ReaderGone)
    }

    /// Gives the host what is held, as far as it takes it, and returns how much that was.
    pub fn flush(&mut self) -> Result<u32, ReaderGone> {
        let mut flushed = 0u32;
        while !self.held.is_empty() {
            let (head, _) = self.held.as_slices();
            match socket::send(&self.stream, head) {
                Ok(count) => {
                    self.held.drain(..count);
                    flushed = flushed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(flushed),
                Err(_) => return Err(ReaderGone),
            }
        }
        self.held.shrink_to_fit();
        Ok(flushed)
    }

    /// Throws away what is held.
    pub fn discard(&mut self) {
        self.held = VecDeque::new();
    }

    /// Sends a line of the protocol before there is any data; it always fits into an unused socket.
    pub fn greet(&self, line: &str) -> Result<(), ReaderGone> {
        match socket::send(&self.stream, line.as_bytes()) {
            Ok(count) if count == line.len() => Ok(()),
            _ => Err(ReaderGone),
        }
    }

    /// Closes one direction.
    pub fn shutdown(&self, how: Shutdown) {
        // Fails only when the other side is gone already, which its own event tells.
        let _ = self.stream.shutdown(how);
    }

    fn send_now(&self, packet: &GuestBuffers<'_>, len: usize) -> Result<usize, ReaderGone> {
        let mut vecs = IoVecs::new();
        vecs.push_guest(packet, HEADER_SIZE, len);
        match vecs.send_to(self.stream.as_fd()) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(ReaderGone),
        }
    }
}
