//! The VMM's event pipe: one JSON object a line.
//!
//! The guest may have taken over the process that writes, so a line has a limit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vmm::config::VmEvent;

/// Longest line; a longer one stops memory exhaustion by ending the reading.
const MAX_LINE: usize = 64 << 10;

/// What one look at the pipe found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// These events, in order; maybe none.
    Events(Vec<VmEvent>),
    /// The process closed the pipe, or wrote something else than events.
    End,
}

/// Reading end of the pipe.
#[derive(Debug)]
pub struct Events {
    pipe: OwnedFd,
    pending: Vec<u8>,
}

impl Events {
    /// Reads from `pipe`.
    pub fn new(pipe: OwnedFd) -> Self {
        Self { pipe, pending: Vec::new() }
    }

    /// Reads once; call it when the descriptor is readable, otherwise it waits.
    pub fn read(&mut self) -> Read {
        let mut buffer = [0; 4096];
        let count = match rustix::io::read(&self.pipe, &mut buffer) {
            Ok(0) => return Read::End,
            Ok(count) => count,
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => {
                return Read::Events(Vec::new());
            }
            Err(_) => return Read::End,
        };
        self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let mut events = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(event) => events.push(event),
                Err(_) => return Read::End,
            }
        }
        if self.pending.len() > MAX_LINE { Read::End } else { Read::Events(events) }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::pipe;
    use vmm::config::VmExit;

    use super::*;

    fn events(writes: &[&[u8]]) -> Vec<Read> {
        let (reader, writer) = pipe().unwrap();
        let mut events = Events::new(reader);
        let mut found: Vec<Read> = writes
            .iter()
            .map(|bytes| {
                rustix::io::write(&writer, bytes).unwrap();
                events.read()
            })
            .collect();
        drop(writer);
        found.push(events.read());
        found
    }

    #[test]
    fn events_come_in_order_however_the_bytes_are_cut() {
        let ready = VmEvent::DriverReady { device: "vda".into() };
        let exited = VmEvent::Exited(VmExit::PowerOff);
        let text = format!(
            "{}\n{}\n",
            serde_json::to_string(&ready).unwrap(),
            serde_json::to_string(&exited).unwrap()
        );
        let (head, tail) = text.as_bytes().split_at(10);
        assert_eq!(
            events(&[head, tail]),
            [Read::Events(Vec::new()), Read::Events(vec![ready, exited]), Read::End]
        );
    }

    #[test]
    fn nonsense_and_endless_lines_end_the_reading() {
        assert_eq!(events(&[b"nonsense\n"])[0], Read::End);
        let chunk = [b'x'; 4096];
        let chunks: Vec<&[u8]> = (0..17).map(|_| &chunk[..]).collect();
        let found = events(&chunks);
        assert_eq!((&found[15], &found[16]), (&Read::Events(Vec::new()), &Read::End));
    }
}
