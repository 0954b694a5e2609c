//! One of the caller's output streams, written without ever waiting for its reader.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

/// As much as a pipe takes without waiting once poll says that it can be written (POSIX, PIPE_BUF). The stream
/// is the caller's too, so it cannot be made non-blocking.
const CHUNK: usize = 4096;
/// As much as is written to a file at once.
const FILE_CHUNK: usize = 256 << 10;

/// Bytes on their way to a stream of the caller.
#[derive(Debug)]
pub struct Output<'a> {
    fd: BorrowedFd<'a>,
    chunk: usize,
    pending: VecDeque<u8>,
    broken: bool,
}

impl<'a> Output<'a> {
    /// Nothing written yet.
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        let regular = fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        Self { fd, chunk: if regular { FILE_CHUNK } else { CHUNK }, pending: VecDeque::new(), broken: false }
    }

    /// Takes `bytes` to write them later.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.broken {
            self.pending.extend(bytes);
        }
    }

    /// How many bytes wait. Poll the descriptor for writing while there are any.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes a part of what waits; call it when poll says that the descriptor can be written. An error means that
    /// nobody reads any more: what waits and what comes is thrown away.
    pub fn write(&mut self) -> io::Result<()> {
        let (front, _) = self.pending.as_slices();
        let Some(part) = front.get(..front.len().min(self.chunk)).filter(|part| !part.is_empty()) else {
            return Ok(());
        };
        match rustix::io::write(self.fd, part) {
            Ok(count) => {
                self.pending.drain(..count);
                Ok(())
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(error) => {
                self.broken = true;
                self.pending = VecDeque::new();
                Err(error.into())
            }
        }
    }
}

impl AsFd for Output<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::pipe::pipe;

    use super::*;

    fn writable(output: &Output<'_>) -> bool {
        poll(&mut [PollFd::new(output, PollFlags::OUT)], Some(&Timespec::default())) == Ok(1)
    }

    #[test]
    fn a_reader_that_does_not_read_never_makes_it_wait_and_nothing_is_lost() {
        let (reader, writer) = pipe().unwrap();
        let mut output = Output::new(writer.as_fd());
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        output.push(&sent);
        while writable(&output) {
            output.write().unwrap();
        }
        assert!(output.pending() > 0, "the pipe took everything");
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut read).unwrap();
            read
        });
        while output.pending() > 0 {
            poll(&mut [PollFd::new(&output, PollFlags::OUT)], None).unwrap();
            output.write().unwrap();
        }
        drop(writer);
        assert!(reading.join().unwrap() == sent);
    }

    #[test]
    fn without_a_reader_it_fails_once_and_then_swallows() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut output = Output::new(writer.as_fd());
        output.push(b"x");
        assert_eq!(output.write().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        output.push(b"y");
        assert_eq!(output.pending(), 0);
    }
}
