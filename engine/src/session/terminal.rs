//! The caller's terminal in raw mode for as long as the container's process has it (`-t`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use agent_protocol::message::TerminalSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode, undone on drop.
#[derive(Debug)]
pub struct RawMode<'a> {
    fd: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> RawMode<'a> {
    /// Puts the terminal behind `fd` into raw mode; `None` where it is no terminal.
    pub fn enter(fd: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        if !isatty(fd) {
            return Ok(None);
        }
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Now, &raw)?;
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // Fails only where the terminal is gone.
        let _ = tcsetattr(self.fd, OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal behind `fd`, if it is one.
pub fn size(fd: impl AsFd) -> Option<TerminalSize> {
    let size = tcgetwinsize(fd).ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_has_no_size_and_stays_as_it_is() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(size(&reader).is_none());
        assert!(RawMode::enter(reader.as_fd()).unwrap().is_none());
    }
}
