//! The standard streams of a process: pipes, a terminal, or nothing for stdin.

use std::os::fd::{AsRawFd, OwnedFd};

use agent_protocol::message::{ProcessPlan, TerminalSize};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::failure::{Context, Failure};

/// The agent's ends, non-blocking.
pub struct Ours {
    /// To write to.
    pub stdin: Option<OwnedFd>,
    /// To read from; a terminal's master.
    pub stdout: Option<OwnedFd>,
    /// To read from; none with a terminal.
    pub stderr: Option<OwnedFd>,
    /// They are a terminal.
    pub terminal: bool,
}

/// The process's ends.
pub struct Theirs {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
    /// They are a terminal, to become the controlling one.
    pub terminal: bool,
}

/// Makes both ends as the plan asks. Called inside the container's root.
pub fn open(plan: &ProcessPlan) -> Result<(Ours, Theirs), Failure> {
    match plan.terminal {
        Some(size) => terminal(size),
        None => pipes(plan.stdin),
    }
}

fn pipes(forward_stdin: bool) -> Result<(Ours, Theirs), Failure> {
    let (our_stdin, stdin) = if forward_stdin {
        let (theirs, ours) = pipe()?;
        (Some(ours), theirs)
    } else {
        let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        (None, null.during("open /dev/null")?)
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    for fd in [our_stdin.as_ref(), Some(&our_stdout), Some(&our_stderr)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).during("make a pipe non-blocking")?;
    }
    let ours = Ours { stdin: our_stdin, stdout: Some(our_stdout), stderr: Some(our_stderr), terminal: false };
    Ok((ours, Theirs { stdin, stdout, stderr, terminal: false }))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_with(PipeFlags::CLOEXEC).during("make a pipe")
}

fn terminal(size: TerminalSize) -> Result<(Ours, Theirs), Failure> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).during("open /dev/ptmx")?;
    grantpt(&master).during("grant the terminal")?;
    unlockpt(&master).during("unlock the terminal")?;
    let name = ptsname(&master, Vec::new()).during("name the terminal")?;
    let slave =
        rustix::fs::openat(CWD, &name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .during("open the terminal")?;
    set_size(&master, size);
    let copy = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, 3).during("copy the terminal");
    let ours = of_terminal(master)?;
    Ok((ours, Theirs { stdin: copy(&slave)?, stdout: copy(&slave)?, stderr: slave, terminal: true }))
}

/// Our ends of a terminal, of which this is the master.
pub fn of_terminal(master: OwnedFd) -> Result<Ours, Failure> {
    rustix::io::ioctl_fionbio(&master, true).during("make the terminal non-blocking")?;
    let stdin = fcntl_dupfd_cloexec(&master, 3).during("copy the terminal")?;
    Ok(Ours { stdin: Some(stdin), stdout: Some(master), stderr: None, terminal: true })
}

/// Tells the terminal its size; the kernel sends SIGWINCH.
pub fn set_size(master: &OwnedFd, size: TerminalSize) {
    let size =
        rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // A terminal that is gone has no size, and nobody who would miss it.
    let _ = rustix::termios::tcsetwinsize(master, size);
}

impl Theirs {
    /// Makes them descriptors 0, 1 and 2, without CLOEXEC. Only for a child right before its exec.
    pub fn install(self) -> Result<(), rustix::io::Errno> {
        for (fd, target) in [(&self.stdin, 0), (&self.stdout, 1), (&self.stderr, 2)] {
            if fd.as_raw_fd() == target {
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
                continue;
            }
            // SAFETY: dup2 takes no pointers. Descriptors 0 to 2 are owned by nobody in the agent.
            crate::failure::check(unsafe { libc::dup2(fd.as_raw_fd(), target) })?;
        }
        // SAFETY: TIOCSCTTY takes an integer; 0 does not steal a terminal.
        if self.terminal && unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
            return Err(crate::failure::last_errno());
        }
        Ok(())
    }
}
