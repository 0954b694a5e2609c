//! The caller's stdin on its way to the container's process, never faster than the agent allows.

use std::os::fd::{AsFd, BorrowedFd};

use agent_protocol::message::HostMessage;
use agent_protocol::{MAX_CHUNK, STDIN_WINDOW};
use rustix::io::Errno;

/// The stream and how much of it may be sent.
#[derive(Debug)]
pub struct Stdin<'a> {
    fd: BorrowedFd<'a>,
    credit: usize,
    ended: bool,
}

impl<'a> Stdin<'a> {
    /// The stream `fd`, of which nothing was read yet.
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        Self { fd, credit: STDIN_WINDOW, ended: false }
    }

    /// The agent takes so many bytes more.
    pub fn add_credit(&mut self, bytes: u32) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // A hostile agent gets no more than the protocol's window in flight.
        self.credit = self.credit.saturating_add(bytes).min(STDIN_WINDOW);
    }

    /// Whether to poll the descriptor for reading.
    pub fn wants_to_read(&self) -> bool {
        !self.ended && self.credit > 0
    }

    /// Reads once; call it when poll says that there is something. An unreadable stream counts as ended.
    pub fn read(&mut self) -> Option<HostMessage> {
        let mut buffer = vec![0; self.credit.min(MAX_CHUNK)];
        match rustix::io::read(self.fd, &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => None,
            Ok(0) | Err(_) => {
                self.ended = true;
                Some(HostMessage::StdinEof)
            }
            Ok(count) => {
                self.credit -= count;
                buffer.truncate(count);
                Some(HostMessage::Stdin(buffer))
            }
        }
    }
}

impl AsFd for Stdin<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_the_agent_allows() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![7; STDIN_WINDOW + 10]).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut stdin = Stdin::new(file.as_fd());
        let mut sent = 0;
        while stdin.wants_to_read() {
            let Some(HostMessage::Stdin(bytes)) = stdin.read() else { panic!("no bytes") };
            assert!(bytes.len() <= MAX_CHUNK);
            sent += bytes.len();
        }
        assert_eq!(sent, STDIN_WINDOW);
        stdin.add_credit(100);
        assert_eq!(stdin.read(), Some(HostMessage::Stdin(vec![7; 10])));
        assert_eq!(stdin.read(), Some(HostMessage::StdinEof));
        assert!(!stdin.wants_to_read());
        stdin.add_credit(u32::MAX);
        assert_eq!(stdin.credit, STDIN_WINDOW);
    }
}
