//! A tool's connection to the host: stdin and stdout as messages, blocking.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use agent_protocol::frame::{self, Decoder};
use agent_protocol::message::{AgentMessage, ExitStatus, FailureKind, HostMessage};
use agent_protocol::tool::{LARGE_FILE, MAX_PIECES, Piece, TOOL_CHUNK};
use archive::{Inlet, On as _, Outlet};

use super::Result;
use super::disks::Disks;

/// Bytes read from the connection at once.
const READ_CHUNK: usize = 256 << 10;

/// Input that is thrown away after a failure before the connection is closed all the same. The host stops sending as
/// soon as it reads of the failure; this is what may be on the way until then.
const MAX_DRAINED: usize = 8 << 20;

/// The connection.
pub struct Channel {
    stream: File,
    decoder: Decoder,
    /// Encoded messages on their way.
    out: Vec<u8>,
    read_buffer: Vec<u8>,
    input_ended: bool,
}

impl Channel {
    /// Goes on with a connection: `decoder` has what came, `unsent` is to be sent first.
    pub fn new(stream: OwnedFd, decoder: Decoder, unsent: Vec<u8>) -> Self {
        Self { stream: stream.into(), decoder, out: unsent, read_buffer: Vec::new(), input_ended: false }
    }

    /// Says that the plan is being carried out.
    pub fn started(&mut self) -> Result<()> {
        self.send(&AgentMessage::Started { pid: std::process::id() }).on("tell", Path::new("the host"))
    }

    /// Says how it ended. An error means that the host is not there any more.
    pub fn finish(&mut self, result: Result<()>) -> io::Result<()> {
        let failed = result.is_err();
        self.send(&match result {
            Ok(()) => AgentMessage::Exited(ExitStatus::Code(0)),
            Err(error) => AgentMessage::Failed { kind: FailureKind::Agent, message: error.to_string() },
        })?;
        // A connection that is closed with bytes unread in it may take the message above with it.
        let mut drained = 0;
        while failed && !self.input_ended && drained < MAX_DRAINED {
            drained += self.receive()?.len();
        }
        Ok(())
    }

    fn send(&mut self, message: &AgentMessage) -> io::Result<()> {
        frame::encode(message, &mut self.out).map_err(io::Error::other)?;
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// The next bytes of stdin; none means the end.
    fn receive(&mut self) -> io::Result<Vec<u8>> {
        while !self.input_ended {
            match self.message()? {
                HostMessage::Stdin(bytes) if bytes.is_empty() => {}
                HostMessage::Stdin(bytes) => return Ok(bytes),
                HostMessage::StdinEof => self.input_ended = true,
                // Nobody asked for the content of what was offered, such as of a file that is skipped.
                HostMessage::Offer => self.send(&AgentMessage::Declined)?,
                _ => return Err(io::Error::other("a message that is not for a tool")),
            }
        }
        Ok(Vec::new())
    }

    fn message(&mut self) -> io::Result<HostMessage> {
        self.read_buffer.resize(READ_CHUNK, 0);
        loop {
            if let Some(message) = self.decoder.next_message().map_err(io::Error::other)? {
                return Ok(message);
            }
            match self.stream.read(&mut self.read_buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.decoder.push(self.read_buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Tells where a file's content is, and waits until the host has read or written all of it.
    fn show(&mut self, pieces: &[Piece]) -> io::Result<()> {
        for part in pieces.chunks(MAX_PIECES) {
            self.send(&AgentMessage::Pieces(part.to_vec()))?;
            if self.message()? != HostMessage::Done {
                return Err(io::Error::other("no answer to where a file is"));
            }
        }
        Ok(())
    }
}

/// Stdin of a tool.
pub struct Input<'a> {
    channel: &'a mut Channel,
    disks: Option<Disks<'a>>,
    bytes: Vec<u8>,
    taken: usize,
}

impl<'a> Input<'a> {
    /// What the host sends, or writes to `disks`.
    pub fn new(channel: &'a mut Channel, disks: Option<Disks<'a>>) -> Self {
        Self { channel, disks, bytes: Vec::new(), taken: 0 }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.bytes.len() {
            self.bytes = self.channel.receive()?;
            self.taken = 0;
        }
        Ok(self.bytes.get(self.taken..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

impl Inlet for Input<'_> {
    /// The host offers a large file by a message in place of its content.
    fn put_content(&mut self, file: &File, size: u64) -> io::Result<bool> {
        let Some(disks) = &self.disks else { return Ok(false) };
        if size < LARGE_FILE || self.taken < self.bytes.len() {
            return Ok(false);
        }
        match self.channel.message()? {
            HostMessage::Offer => {}
            HostMessage::Stdin(bytes) => {
                (self.bytes, self.taken) = (bytes, 0);
                return Ok(false);
            }
            _ => return Err(io::Error::other("no content of a file")),
        }
        let Some(pieces) = disks.make_room(file, size)? else {
            self.channel.send(&AgentMessage::Declined)?;
            return Ok(false);
        };
        self.channel.show(&pieces)?;
        disks.forget_cache(file);
        Ok(true)
    }
}

/// Stdout of a tool, in large messages. What was written last is sent by [`Write::flush`].
pub struct Output<'a> {
    channel: &'a mut Channel,
    disks: Option<Disks<'a>>,
    bytes: Vec<u8>,
}

impl<'a> Output<'a> {
    /// To the host, which may read from `disks`.
    pub fn new(channel: &'a mut Channel, disks: Option<Disks<'a>>) -> Self {
        Self { channel, disks, bytes: Vec::with_capacity(TOOL_CHUNK) }
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(TOOL_CHUNK - self.bytes.len());
        self.bytes.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if self.bytes.len() == TOOL_CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let message = AgentMessage::Stdout(std::mem::take(&mut self.bytes));
        self.channel.send(&message)?;
        if let AgentMessage::Stdout(bytes) = message {
            self.bytes = bytes;
            self.bytes.clear();
        }
        Ok(())
    }
}

impl Outlet for Output<'_> {
    fn take_content(&mut self, path: &Path, size: u64) -> io::Result<bool> {
        let Some(disks) = self.disks.as_ref().filter(|_| size >= LARGE_FILE) else { return Ok(false) };
        // Held open while the host reads, so that its blocks are nobody else's.
        let file = File::open(path)?;
        let Some(pieces) = disks.locate(&file, path, size)? else { return Ok(false) };
        self.flush()?;
        self.channel.show(&pieces)?;
        Ok(true)
    }
}
