//! Two stream sockets as one connection: what comes on one goes to the other, in both directions.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

/// Bytes that wait in each direction.
const BUFFER: usize = 16 << 10;

/// Whether something goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to come.
    Wait,
    /// It has ended.
    Over,
}

/// The two of them, both non-blocking.
pub struct Splice<One, Other> {
    one: One,
    other: Other,
    there: Direction,
    back: Direction,
}

/// One direction.
#[derive(Default)]
struct Direction {
    waiting: Vec<u8>,
    ended: bool,
}

impl<One: AsFd, Other: AsFd> Splice<One, Other> {
    /// A connection of `one` and `other`; fails where one of them is none.
    pub fn new(one: One, other: Other) -> Result<Self, Errno> {
        for socket in [one.as_fd(), other.as_fd()] {
            rustix::io::ioctl_fionbio(socket, true)?;
        }
        Ok(Self { one, other, there: Direction::default(), back: Direction::default() })
    }

    /// The second of them.
    pub fn other(&self) -> BorrowedFd<'_> {
        self.other.as_fd()
    }

    /// What to poll for.
    pub fn interest(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let one = self.there.reading() | self.back.writing();
        let other = self.back.reading() | self.there.writing();
        [(self.one.as_fd(), one), (self.other.as_fd(), other)]
    }

    /// Moves what can be moved now.
    pub fn go_on(&mut self) -> Result<Next, Errno> {
        let there = self.there.go_on(self.one.as_fd(), self.other.as_fd())?;
        let back = self.back.go_on(self.other.as_fd(), self.one.as_fd())?;
        // Whoever answers may do so long after the question ended, but nobody asks who is not heard any more.
        let _ = there;
        Ok(back)
    }
}

impl Direction {
    fn reading(&self) -> PollFlags {
        if self.waiting.is_empty() && !self.ended { PollFlags::IN } else { PollFlags::empty() }
    }

    fn writing(&self) -> PollFlags {
        if self.waiting.is_empty() { PollFlags::empty() } else { PollFlags::OUT }
    }

    fn go_on(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Next, Errno> {
        loop {
            while !self.waiting.is_empty() {
                match rustix::io::write(to, &self.waiting) {
                    Ok(count) => drop(self.waiting.drain(..count)),
                    Err(Errno::AGAIN) => return Ok(Next::Wait),
                    Err(error) => return Err(error),
                }
            }
            if self.ended {
                return Ok(Next::Over);
            }
            let mut buffer = [0u8; BUFFER];
            match rustix::io::read(from, &mut buffer[..]) {
                Ok(0) => {
                    self.ended = true;
                    rustix::net::shutdown(to, Shutdown::Write)?;
                }
                Ok(count) => self.waiting.extend(buffer.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN) => return Ok(Next::Wait),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_go_both_ways_until_both_sides_end() {
        let ((one, mut client), (other, mut host)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let mut splice = Splice::new(one, other).unwrap();
        client.write_all(b"question").unwrap();
        assert_eq!(splice.go_on(), Ok(Next::Wait));
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(splice.go_on(), Ok(Next::Wait));
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        host.write_all(b"answer").unwrap();
        drop(host);
        assert_eq!(splice.go_on(), Ok(Next::Over));
        text.clear();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
    }

    #[test]
    fn a_reader_who_is_slow_is_waited_for_and_one_who_is_gone_is_an_end() {
        let ((one, mut client), (other, host)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let mut splice = Splice::new(one, other).unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[7; 4096]).is_ok() {
            assert_eq!(splice.go_on(), Ok(Next::Wait));
        }
        assert!(splice.interest()[1].1.contains(PollFlags::OUT));
        drop(host);
        assert!(splice.go_on().is_err());
    }
}
