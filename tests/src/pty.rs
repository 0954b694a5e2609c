//! A pseudoterminal of the host with a program on it, as a user's terminal window is.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// The user's end of a terminal.
pub struct Pty {
    user: File,
    /// The program's end, kept open so that its modes can be read when the program is gone.
    line: File,
    output: Receiver<Vec<u8>>,
    said: Vec<u8>,
}

impl Pty {
    /// A terminal of this size that nobody uses.
    pub fn open(rows: u16, columns: u16) -> anyhow::Result<Self> {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&user)?;
        unlockpt(&user)?;
        let path = ptsname(&user, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(path, flags, Mode::empty()).context("no terminal line")?);
        let user = File::from(user);
        let mut reader = user.try_clone()?;
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end of the line: nobody has its other end open.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let pty = Pty { user, line, output, said: Vec::new() };
        pty.resize(rows, columns)?;
        Ok(pty)
    }

    /// Starts `command` in a session of its own whose controlling terminal this is.
    pub fn spawn(&self, command: &Command) -> anyhow::Result<Child> {
        // `setsid` (util-linux) becomes the program: it forks only where it leads a process group.
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args());
        leader.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        leader.stdin(Stdio::from(self.line.try_clone()?));
        leader.stdout(Stdio::from(self.line.try_clone()?)).stderr(Stdio::from(self.line.try_clone()?));
        leader.spawn().context("cannot run setsid")
    }

    /// What the user types.
    pub fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.user.write_all(text.as_bytes())?)
    }

    /// The user changes the size of the window; the kernel sends SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> anyhow::Result<()> {
        Ok(tcsetwinsize(&self.line, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
    }

    /// The modes of the line.
    pub fn modes(&self) -> anyhow::Result<Termios> {
        Ok(tcgetattr(&self.line)?)
    }

    /// Whether Ctrl-C is a byte for the program and not a signal.
    pub fn is_raw(&self) -> anyhow::Result<bool> {
        Ok(!self.modes()?.local_modes.intersects(LocalModes::ISIG | LocalModes::ICANON | LocalModes::ECHO))
    }

    /// Waits until the screen shows `text`, which counts only after what was expected before.
    pub fn expect(&mut self, text: &str, deadline: Duration) -> anyhow::Result<()> {
        ensure!(!text.is_empty(), "nothing to expect");
        let end = Instant::now() + deadline;
        loop {
            if let Some(at) = self.said.windows(text.len()).position(|part| part == text.as_bytes()) {
                self.said.drain(..at + text.len());
                return Ok(());
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.said.extend(bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!(
                        "no {text:?} on the terminal; since the last: {:?}",
                        self.said.escape_ascii().to_string()
                    )
                }
            }
        }
    }
}
