//! The connection to the file server: a socket that keeps messages apart (SOCK_SEQPACKET).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::message::{OUT_HEADER_BYTES, OutHeader};
use crate::virtio::guest_buffers::{IoVecs, retry};

/// The device's end of the connection.
pub struct Server(OwnedFd);

/// The beginning of a message that waits to be taken.
#[derive(Debug)]
pub enum Waiting {
    /// There is none.
    Nothing,
    /// A reply of `len` bytes, header included.
    Reply {
        /// Its header.
        header: OutHeader,
        /// Its length as it came, at least that of the header.
        len: usize,
    },
    /// Shorter than any reply, or the end: whoever wrote it cannot be worked with any more.
    End,
}

impl Server {
    /// The server behind `socket`.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message without waiting.
    pub fn send(&self, message: &mut IoVecs<'_>) -> io::Result<()> {
        message.send_to(self.0.as_fd()).map(|_| ())
    }

    /// Looks at the next message, which stays where it is.
    pub fn peek(&self) -> io::Result<Waiting> {
        let mut header = [0u8; OUT_HEADER_BYTES];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: the kernel writes at most `header.len()` bytes to `header`, which outlives the call; MSG_TRUNC makes
        // only the result larger than that.
        let result = retry(|| unsafe {
            libc::recv(self.0.as_raw_fd(), header.as_mut_ptr().cast(), header.len(), flags)
        });
        match result {
            Ok(len) if len >= OUT_HEADER_BYTES => {
                Ok(Waiting::Reply { header: OutHeader::parse(&header), len })
            }
            Ok(_) => Ok(Waiting::End),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Waiting::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Takes the next message; what does not fit is lost. Gives the bytes taken. Only after [`Server::peek`] saw it, so
    /// there is no wait.
    pub fn take(&self, into: &mut IoVecs<'_>) -> io::Result<usize> {
        into.read_from(self.0.as_fd())
    }

    /// Waits until there is a message, at most `timeout_ms`; false if that was not enough.
    pub fn wait(&self, timeout_ms: i32) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one entry and outlives the call.
        retry(|| unsafe { libc::poll(&raw mut poll, 1, timeout_ms) } as isize).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
