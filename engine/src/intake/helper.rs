//! The caller's side of a confined process: started, heard, answered, ended.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use images::auth::Keychain;
use images::pull::{Failure, Unnamed};
use images::{Progress, PullError, Reference};
use jailer::child::Child;
use jailer::filter;
use rustix::fs::{MemfdFlags, memfd_create};

use super::VERB;
use super::job::{Answer, Job, Message, Options, Reply, Step, Work};
use crate::process::{inherit, json_file, keep_private, spawn_caged};
use crate::text::printable;

/// Longest message: an archive of a thousand names.
const MAX_MESSAGE: u64 = 4 << 20;
/// Bytes of its stderr that an error shows.
const MAX_SAID: u64 = 4 << 10;

/// A confined process, killed on drop.
#[derive(Debug)]
pub(super) struct Helper {
    child: Child,
    wire: BufReader<UnixStream>,
    stderr: File,
}

impl Helper {
    /// Starts one, which inherits `fds`.
    pub fn start(work: Work, options: Options, fds: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let stderr = File::from(memfd_create("lighter-intake-stderr", MemfdFlags::CLOEXEC)?);
        let numbers = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let job = json_file("lighter-intake-job", &Job { work, options, fds: numbers })?;
        let _spawning = crate::service::spawning();
        keep_private();
        for fd in [job.as_fd(), theirs.as_fd()].into_iter().chain(fds.iter().copied()) {
            inherit(fd)?;
        }
        let arguments = [
            VERB.to_owned(),
            "--job-fd".to_owned(),
            job.as_raw_fd().to_string(),
            "--wire-fd".to_owned(),
            theirs.as_raw_fd().to_string(),
        ];
        let child = spawn_caged(Path::new("/proc/self/exe"), &arguments, stderr.as_fd())?;
        // The caller goes on with these.
        keep_private();
        Ok(Self { child, wire: BufReader::new(ours), stderr })
    }

    /// Listens until its last word. It is given the credentials of `asked` and no others.
    pub fn hear(
        &mut self,
        progress: &dyn Progress,
        asked: Option<(&Reference, &Keychain)>,
    ) -> Result<Answer, PullError> {
        loop {
            let mut line = Vec::new();
            let read = self.wire.by_ref().take(MAX_MESSAGE).read_until(b'\n', &mut line);
            let message = match read {
                Ok(count) if count > 0 => serde_json::from_slice(&line).map_err(|_| self.nonsense())?,
                _ => return Err(self.gone()),
            };
            match message {
                Message::Step(Step::Retrying { what, reason, attempt }) => {
                    let [what, reason] = [what, reason].map(|text| printable(text.as_bytes()));
                    progress.event(Step::Retrying { what, reason, attempt }.event());
                }
                Message::Step(step) => progress.event(step.event()),
                Message::Credentials => {
                    let reply: Reply = match asked {
                        Some((reference, keychain)) => {
                            keychain.find(reference).map_err(|error| vmm::text::with_causes(&error))
                        }
                        None => Ok(None),
                    };
                    self.reply(&reply).map_err(|_| self.gone())?;
                }
                Message::Done(answer) => return Ok(answer),
                Message::Failed { failure, text } => {
                    return Err(PullError::Elsewhere { failure, text: printable(text.as_bytes()) });
                }
            }
        }
    }

    /// What an archive held.
    pub fn loaded(&mut self, progress: &dyn Progress) -> Result<Vec<Unnamed>, PullError> {
        match self.hear(progress, None)? {
            Answer::Loaded(unnamed) => Ok(unnamed),
            _ => Err(self.nonsense()),
        }
    }

    /// It did not say what it should.
    pub fn nonsense(&self) -> PullError {
        failed("the process that reads images talks nonsense: its input may have taken it over")
    }

    fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.wire.get_mut().write_all(&line)
    }

    /// It ended without a last word.
    fn gone(&mut self) -> PullError {
        let Ok(status) = self.child.wait() else {
            return failed("the process that reads images is lost");
        };
        let mut said = Vec::new();
        let _ = self.stderr.rewind().and_then(|()| (&self.stderr).take(MAX_SAID).read_to_end(&mut said));
        let said = printable(&said);
        let how = match (status.code(), status.signal()) {
            (_, Some(libc::SIGSYS)) => {
                // What it said before may be why.
                let said = said.replace(filter::REFUSED, "system call ");
                format!("was killed by its seccomp filter: {said}")
            }
            (_, Some(signal)) => format!("was killed by signal {signal}: {said}"),
            (code, None) => format!("ended with exit code {}: {said}", code.unwrap_or_default()),
        };
        failed(format!("the process that reads images {how}"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Fails only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failed(text: impl Into<String>) -> PullError {
    PullError::Elsewhere { failure: Failure::Host, text: text.into() }
}
