//! A process of the container: its pipes or terminal, its stdin on the way, its end.

pub mod capabilities;
pub mod identity;
pub mod lookup;
mod rlimits;
mod spawn;
pub mod stdio;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::STDIN_WINDOW;
use agent_protocol::message::{ExitStatus, TerminalSize};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::failure::Failure;

pub use spawn::{First, spawn};

/// One running or just ended process.
pub struct Process {
    pid: Pid,
    stdin: Option<OwnedFd>,
    /// Bytes of stdin that the pipe did not take yet; at most [`STDIN_WINDOW`].
    pending: VecDeque<u8>,
    /// Bytes of stdin that waited when the process was adopted: its new host does not know of them.
    inherited: usize,
    /// The host said that no more stdin comes.
    stdin_over: bool,
    stdout: Stream,
    stderr: Stream,
    /// The terminal's master, for resizing.
    terminal: bool,
    status: Option<ExitStatus>,
}

/// One direction of output.
struct Stream {
    fd: Option<OwnedFd>,
    /// The last read found nothing.
    quiet: bool,
}

impl Process {
    /// The process `pid`, a child of ours, with our ends of its streams.
    pub fn new(pid: Pid, stdio: stdio::Ours) -> Self {
        Process {
            pid,
            stdin: stdio.stdin,
            pending: VecDeque::new(),
            inherited: 0,
            stdin_over: false,
            stdout: Stream { fd: stdio.stdout, quiet: false },
            stderr: Stream { fd: stdio.stderr, quiet: false },
            terminal: stdio.terminal,
            status: None,
        }
    }

    /// Its ID as the agent sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, once it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Notes the end.
    pub fn ended(&mut self, status: ExitStatus) {
        self.status = Some(status);
        self.stdin = None;
        self.pending.clear();
    }

    /// All output that the process wrote before its end was read. Its orphans may hold the pipes open; what
    /// they write later is not the process's output.
    pub fn output_is_drained(&self) -> bool {
        [&self.stdout, &self.stderr].into_iter().all(|stream| stream.fd.is_none() || stream.quiet)
    }

    /// The pipe to write to, while bytes wait for it.
    pub fn stdin_to_write(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().filter(|_| !self.pending.is_empty()).map(AsFd::as_fd)
    }

    /// Where stdout is read.
    pub fn stdout(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.fd.as_ref().map(AsFd::as_fd)
    }

    /// Where stderr is read.
    pub fn stderr(&self) -> Option<BorrowedFd<'_>> {
        self.stderr.fd.as_ref().map(AsFd::as_fd)
    }

    /// Reads some of stdout; `None` if there is nothing now.
    pub fn read_stdout<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        self.stdout.read(buffer)
    }

    /// Reads some of stderr; `None` if there is nothing now.
    pub fn read_stderr<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        self.stderr.read(buffer)
    }

    /// The process has another host, which counts its stdin from here on.
    pub fn adopted(&mut self) {
        self.inherited = self.pending.len();
    }

    /// Takes stdin from the host. An error if the host overran its window.
    pub fn queue_stdin(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        if self.pending.len() + bytes.len() > STDIN_WINDOW + self.inherited {
            return Err(Failure::agent(format!("stdin beyond its window of {STDIN_WINDOW} bytes")));
        }
        if self.stdin.is_some() && !self.stdin_over {
            self.pending.extend(bytes);
        }
        Ok(())
    }

    /// No more stdin comes: the pipe is closed once it took what waits. A terminal gets its end-of-file key.
    pub fn end_stdin(&mut self) {
        if !std::mem::replace(&mut self.stdin_over, true)
            && self.terminal
            && self.pending.len() < STDIN_WINDOW
        {
            const END_OF_FILE: u8 = 4;
            self.pending.push_back(END_OF_FILE);
        }
        self.close_stdin_if_done();
    }

    /// Writes what the pipe takes; gives the number of bytes that the host may send in their place.
    pub fn write_stdin(&mut self) -> u32 {
        let Some(stdin) = &self.stdin else { return 0 };
        let mut written = 0;
        loop {
            let (front, _) = self.pending.as_slices();
            if front.is_empty() {
                break;
            }
            match rustix::io::write(stdin, front) {
                Ok(count) => {
                    self.pending.drain(..count);
                    written += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Nobody reads any more: the rest is taken and dropped, as a closed pipe does.
                Err(_) => {
                    written += self.pending.len();
                    self.pending.clear();
                    self.stdin_over = true;
                }
            }
        }
        self.close_stdin_if_done();
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    fn close_stdin_if_done(&mut self) {
        if self.stdin_over && self.pending.is_empty() {
            self.stdin = None;
        }
    }

    /// Sends a signal to the process; an unknown number is ignored.
    pub fn signal(&self, signal: i32) {
        if self.status.is_none() && (1..=64).contains(&signal) {
            // SAFETY: kill takes no pointers; the process is not reaped, so the ID is still its own.
            unsafe { libc::kill(self.pid.as_raw_nonzero().get(), signal) };
        }
    }

    /// Sets the terminal's size; nothing without one.
    pub fn resize(&self, size: TerminalSize) {
        if self.terminal
            && let Some(master) = &self.stdout.fd
        {
            stdio::set_size(master, size);
        }
    }
}

impl Stream {
    fn read<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let fd = self.fd.as_ref()?;
        self.quiet = false;
        match rustix::io::read(fd, &mut *buffer) {
            Ok(0) => self.fd = None,
            Ok(count) => return buffer.get(..count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.quiet = true,
            // A terminal whose last process ended gives EIO.
            Err(_) => self.fd = None,
        }
        None
    }
}
