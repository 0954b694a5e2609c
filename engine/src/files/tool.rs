//! A connection to one of the agent's tools: its output is read, its input written, both blocking.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use agent_protocol::frame::{self, Decoder};
use agent_protocol::message::{AgentMessage, ExitStatus, HostMessage};
use agent_protocol::tool::{LARGE_FILE, Piece, TOOL_CHUNK, ToolPlan};
use agent_protocol::{AGENT_PORT, PROTOCOL_VERSION};
use archive::{Inlet, Outlet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::FilesError;
use super::disks::Disks;
use crate::session::shown;

/// Bytes read from the guest at once.
const READ_CHUNK: usize = 256 << 10;

/// Longest answer of the VMM to `CONNECT`.
const MAX_ANSWER: u64 = 32;

/// A tool that runs.
pub struct Tool {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Output that was not taken yet.
    output: Vec<u8>,
    taken: usize,
    /// The tool said that everything is done.
    done: bool,
    /// Where large files are.
    disks: Option<Disks>,
    /// A part of a file that the tool has shown and that was not read yet.
    pieces: VecDeque<Piece>,
}

impl Tool {
    /// Starts a tool in the guest behind the vsock socket `vsock`.
    pub fn start(vsock: &Path, plan: &ToolPlan, disks: Option<Disks>) -> Result<Self, FilesError> {
        let connect = |source| FilesError::Connect { path: vsock.to_owned(), source };
        let mut stream = UnixStream::connect(vsock).map_err(connect)?;
        let mut request = format!("CONNECT {AGENT_PORT}\n").into_bytes();
        let message = HostMessage::Tool { plan: plan.clone(), on_disk: disks.is_some() };
        frame::encode(&message, &mut request).map_err(|error| connect(io::Error::other(error)))?;
        stream.write_all(&request).map_err(connect)?;
        let mut answer = String::new();
        let mut reader = BufReader::with_capacity(READ_CHUNK, &stream);
        reader.by_ref().take(MAX_ANSWER).read_line(&mut answer).map_err(connect)?;
        if !answer.starts_with("OK ") {
            let said = answer.trim_end().to_owned();
            return Err(connect(io::Error::other(format!("the VMM answered {said:?}"))));
        }
        let mut decoder = Decoder::default();
        decoder.push(reader.buffer());
        let buffer = vec![0; READ_CHUNK];
        let (output, taken, done, pieces) = (Vec::new(), 0, false, VecDeque::new());
        let mut tool = Self { stream, decoder, buffer, output, taken, done, disks, pieces };
        match tool.message().map_err(FilesError::Lost)? {
            AgentMessage::Hello { protocol: PROTOCOL_VERSION, .. } => {}
            _ => return Err(FilesError::Lost(io::Error::other("its agent is of another version"))),
        }
        match tool.message().map_err(FilesError::Lost)? {
            AgentMessage::Started { .. } => Ok(tool),
            AgentMessage::Failed { message, .. } => Err(FilesError::Guest(shown(&message))),
            _ => Err(FilesError::Lost(io::Error::other("its agent broke the protocol"))),
        }
    }

    /// Says that no more input comes, and waits until the tool is done.
    pub fn finish(mut self) -> Result<(), FilesError> {
        // A tool that has all it wants may be gone; what it said last decides.
        let _ = self.send(&HostMessage::StdinEof);
        let ended = io::copy(&mut self, &mut io::sink());
        ended.map(drop).map_err(FilesError::Transfer)
    }

    fn send(&mut self, message: &HostMessage) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::encode(message, &mut bytes).map_err(io::Error::other)?;
        self.stream.write_all(&bytes)
    }

    fn message(&mut self) -> io::Result<AgentMessage> {
        loop {
            if let Some(message) = self.decoder.next_message().map_err(io::Error::other)? {
                return Ok(message);
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(io::Error::other("the guest ended, or its agent did")),
                Ok(count) => self.decoder.push(self.buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the next message of a running tool.
    fn advance(&mut self) -> io::Result<()> {
        match self.message()? {
            AgentMessage::Stdout(bytes) => (self.output, self.taken) = (bytes, 0),
            AgentMessage::Exited(ExitStatus::Code(0)) => self.done = true,
            AgentMessage::Pieces(pieces) if self.disks.is_some() => {
                self.pieces = pieces.into_iter().filter(|piece| piece.length > 0).collect();
                if self.pieces.is_empty() {
                    self.send(&HostMessage::Done)?;
                }
            }
            AgentMessage::Failed { message, .. } => return Err(io::Error::other(shown(&message))),
            _ => return Err(io::Error::other("its agent broke the protocol")),
        }
        Ok(())
    }
}

impl Tool {
    /// Reads from the disks what the tool has shown, and tells it when all of that is read.
    fn read_pieces(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (Some(disks), Some(piece)) = (&self.disks, self.pieces.front_mut()) else { return Ok(0) };
        let count = disks.read(piece, buffer)?;
        piece.at = piece.at.saturating_add(count as u64);
        piece.length -= count as u64;
        if piece.length == 0 {
            self.pieces.pop_front();
            if self.pieces.is_empty() {
                self.send(&HostMessage::Done)?;
            }
        }
        Ok(count)
    }
}

/// The tool's output. Its end is the end of a tool that succeeded; anything else is an error.
impl Read for Tool {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.output.len() && self.pieces.is_empty() && !self.done {
            self.advance()?;
        }
        if self.taken == self.output.len() && !self.pieces.is_empty() {
            return self.read_pieces(buffer);
        }
        let count = self.output.get(self.taken..).unwrap_or_default().read(buffer)?;
        self.taken += count;
        Ok(count)
    }
}

/// A tool's input, in large messages. What was written last is sent by [`Write::flush`].
pub struct Input<'a> {
    tool: &'a mut Tool,
    bytes: Vec<u8>,
}

impl<'a> Input<'a> {
    /// To `tool`.
    pub fn new(tool: &'a mut Tool) -> Self {
        Self { tool, bytes: Vec::with_capacity(TOOL_CHUNK) }
    }
}

impl Write for Input<'_> {
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
        // A tool that failed says so at once; the rest need not be sent.
        let mut fds = [PollFd::new(&self.tool.stream, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
            self.tool.advance()?;
        }
        let message = HostMessage::Stdin(std::mem::take(&mut self.bytes));
        if self.tool.send(&message).is_err() {
            // What the tool said before it hung up says more. One that is done wants no more.
            while !self.tool.done {
                self.tool.advance()?;
            }
        }
        if let HostMessage::Stdin(bytes) = message {
            self.bytes = bytes;
            self.bytes.clear();
        }
        Ok(())
    }
}

impl Outlet for Input<'_> {
    /// Offers a large file. If the tool makes room for it, it is written to the disk.
    fn take_content(&mut self, path: &Path, size: u64) -> io::Result<bool> {
        if self.tool.disks.is_none() || size < LARGE_FILE {
            return Ok(false);
        }
        self.flush()?;
        let mut file = File::open(path)?;
        self.tool.send(&HostMessage::Offer)?;
        let mut left = size;
        while left > 0 {
            let pieces = match self.tool.message()? {
                AgentMessage::Declined if left == size => return Ok(false),
                AgentMessage::Pieces(pieces) => pieces,
                AgentMessage::Failed { message, .. } => return Err(io::Error::other(shown(&message))),
                _ => return Err(io::Error::other("its agent broke the protocol")),
            };
            let before = left;
            for piece in &pieces {
                left = left.checked_sub(piece.length).ok_or_else(|| io::Error::other("too many pieces"))?;
                self.tool.disks.as_ref().map_or(Ok(()), |disks| disks.write(piece, &mut file))?;
            }
            if left == before {
                return Err(io::Error::other("no room for a file"));
            }
            self.tool.send(&HostMessage::Done)?;
        }
        Ok(true)
    }
}

impl Inlet for Tool {}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use agent_protocol::message::FailureKind;
    use agent_protocol::tool::Disk;

    use super::*;

    fn hello() -> AgentMessage {
        AgentMessage::Hello {
            protocol: PROTOCOL_VERSION,
            kernel_release: String::new(),
            agent_start_ns: 0,
            now_ns: 0,
        }
    }

    /// A tool whose guest says `messages` and hangs up.
    fn tool(messages: &[AgentMessage]) -> Result<Tool, FilesError> {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut bytes = b"OK 1\n".to_vec();
        for message in messages {
            frame::encode(message, &mut bytes).unwrap();
        }
        let guest = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 13);
            stream.write_all(&bytes).unwrap();
        });
        let tool = Tool::start(&path, &ToolPlan::ReadRoot, None);
        guest.join().unwrap();
        tool
    }

    fn failed(message: &str) -> AgentMessage {
        AgentMessage::Failed { kind: FailureKind::Agent, message: message.into() }
    }

    #[test]
    fn output_ends_where_the_tool_says_so() {
        let started = AgentMessage::Started { pid: 1 };
        let end = AgentMessage::Exited(ExitStatus::Code(0));
        let parts = [b"ab".to_vec(), Vec::new(), b"c".to_vec()].map(AgentMessage::Stdout);
        let [a, b, c] = parts;
        let mut text = String::new();
        tool(&[hello(), started, a, b, c, end]).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }

    #[test]
    fn output_that_just_stops_or_fails_is_an_error() {
        let started = || AgentMessage::Started { pid: 1 };
        let part = || AgentMessage::Stdout(b"ab".to_vec());
        for (last, why) in [(vec![], "the guest ended"), (vec![failed("no space\u{1b}")], "no space")] {
            let messages: Vec<_> = [hello(), started(), part()].into_iter().chain(last).collect();
            let error = tool(&messages).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_tool_that_does_not_start_says_why() {
        let Err(FilesError::Guest(message)) = tool(&[hello(), failed("no such file")]) else { panic!() };
        assert_eq!(message, "no such file");
        assert!(matches!(tool(&[hello()]), Err(FilesError::Lost(_))));
    }

    /// Disks of ten bytes each, in `base`.
    fn disks(base: &Path) -> Disks {
        for name in ["image", "writable"] {
            std::fs::write(base.join(name), "0123456789").unwrap();
        }
        Disks::open(&base.join("image"), &base.join("writable")).unwrap()
    }

    /// What a tool with `disks` gives, whose guest says `messages` once it is asked.
    fn output(disks: Option<Disks>, messages: &[AgentMessage]) -> io::Result<Vec<u8>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut bytes = Vec::new();
        for message in messages {
            frame::encode(message, &mut bytes).unwrap();
        }
        theirs.write_all(&bytes).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let (decoder, buffer, pieces) = (Decoder::default(), vec![0; READ_CHUNK], VecDeque::new());
        let mut tool =
            Tool { stream: ours, decoder, buffer, output: Vec::new(), taken: 0, done: false, disks, pieces };
        let mut output = Vec::new();
        tool.read_to_end(&mut output).map(|_| output)
    }

    fn piece(disk: Disk, at: u64, length: u64) -> Piece {
        Piece { disk, at, length }
    }

    #[test]
    fn what_a_guest_shows_on_its_disks_is_read_in_its_place() {
        let base = tempfile::tempdir().unwrap();
        let pieces = vec![piece(Disk::Writable, 8, 2), piece(Disk::Hole, 0, 1), piece(Disk::Image, 0, 3)];
        let text = |text: &str| AgentMessage::Stdout(text.into());
        let end = AgentMessage::Exited(ExitStatus::Code(0));
        let said =
            [text("a"), AgentMessage::Pieces(pieces), AgentMessage::Pieces(Vec::new()), text("b"), end];
        assert_eq!(output(Some(disks(base.path())), &said).unwrap(), b"a89\x00012b");
        assert!(output(None, &said).is_err(), "a guest that was not asked to");
        let beyond = [AgentMessage::Pieces(vec![piece(Disk::Image, 9, u64::MAX)])];
        assert!(output(Some(disks(base.path())), &beyond).is_err());
    }

    #[test]
    fn an_offered_file_is_written_where_the_guest_says_or_sent() {
        let base = tempfile::tempdir().unwrap();
        let large = base.path().join("large");
        std::fs::write(&large, vec![7; LARGE_FILE as usize]).unwrap();
        let offer = |answer: AgentMessage| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut bytes = Vec::new();
            frame::encode(&answer, &mut bytes).unwrap();
            theirs.write_all(&bytes).unwrap();
            let disks = disks(base.path());
            disks.grow_writable(LARGE_FILE + 10);
            let (decoder, buffer, pieces) = (Decoder::default(), vec![0; READ_CHUNK], VecDeque::new());
            let (output, disks) = (Vec::new(), Some(disks));
            let mut tool =
                Tool { stream: ours, decoder, buffer, output, taken: 0, done: false, disks, pieces };
            let taken = Input::new(&mut tool).take_content(&large, LARGE_FILE);
            (taken.map_err(|error| error.to_string()), std::fs::read(base.path().join("writable")).unwrap())
        };
        let (taken, disk) = offer(AgentMessage::Pieces(vec![piece(Disk::Writable, 10, LARGE_FILE)]));
        assert_eq!((taken, &disk[..12]), (Ok(true), &b"0123456789\x07\x07"[..]));
        assert_eq!(offer(AgentMessage::Declined).0, Ok(false));
        for (answer, why) in [
            (AgentMessage::Pieces(Vec::new()), "no room"),
            (AgentMessage::Pieces(vec![piece(Disk::Writable, 0, LARGE_FILE + 1)]), "too many"),
            (AgentMessage::Pieces(vec![piece(Disk::Image, 0, LARGE_FILE)]), "not on its writable disk"),
            (AgentMessage::Pieces(vec![piece(Disk::Writable, 11, LARGE_FILE)]), "not on its writable disk"),
            (failed("disk full"), "disk full"),
            (AgentMessage::Prepared, "protocol"),
        ] {
            let error = offer(answer).0.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
