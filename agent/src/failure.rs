//! Why the agent could not do something, ready for the host.

use agent_protocol::message::FailureKind;
use rustix::io::Errno;

/// What went wrong, and the exit code that it means.
#[derive(Debug)]
pub struct Failure {
    /// Decides the exit code.
    pub kind: FailureKind,
    /// What, why, the fix.
    pub message: String,
}

impl Failure {
    /// The agent's or the plan's fault: exit code 125.
    pub fn agent(message: impl Into<String>) -> Self {
        Failure { kind: FailureKind::Agent, message: message.into() }
    }
}

/// Names the step that failed.
pub trait Context<T> {
    /// `step: reason`.
    fn during(self, step: &str) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn during(self, step: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::agent(format!("{step}: {errno}")))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn during(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::agent(format!("{step}: {error}")))
    }
}

/// The result of a libc call that gives -1 and sets errno.
pub fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// `errno` of the last failed libc call.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
