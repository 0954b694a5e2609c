//! How a run ends, and the exit code that says so, as `docker run` has them.

use agent_protocol::message::{ExitStatus, FailureKind};
use serde::{Deserialize, Serialize};

/// Lighter itself failed.
pub const EXIT_FAILURE: u8 = 125;
/// The program cannot be executed.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
const EXIT_NOT_FOUND: u8 = 127;
/// Added to the number of a signal.
const EXIT_SIGNAL: u8 = 128;

/// The end of a run.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The process ran and ended.
    Exited(ExitStatus),
    /// The process was not started.
    NotStarted {
        /// Decides the exit code.
        kind: FailureKind,
        /// What, why, the fix.
        message: String,
    },
    /// The caller insisted on the end, or asked for it before the process ran.
    Interrupted {
        /// By this signal.
        signal: i32,
    },
    /// Lighter or the machine failed.
    Failed {
        /// What, why, the fix.
        message: String,
    },
}

impl Outcome {
    /// What there is to say about it beside the exit code.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::NotStarted { message, .. } | Self::Failed { message } => Some(message),
            Self::Exited(_) | Self::Interrupted { .. } => None,
        }
    }

    /// The exit code of `lighter run`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exited(ExitStatus::Code(code)) => *code,
            Self::Exited(ExitStatus::Signal(signal)) => EXIT_SIGNAL.saturating_add(*signal),
            Self::NotStarted { kind: FailureKind::NotFound, .. } => EXIT_NOT_FOUND,
            Self::NotStarted { kind: FailureKind::NotExecutable, .. } => EXIT_NOT_EXECUTABLE,
            Self::NotStarted { kind: FailureKind::Agent, .. } | Self::Failed { .. } => EXIT_FAILURE,
            Self::Interrupted { signal } => {
                EXIT_SIGNAL.saturating_add(u8::try_from(*signal).unwrap_or(u8::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_dockers() {
        let failed = |kind| Outcome::NotStarted { kind, message: String::new() };
        let cases = [
            (Outcome::Exited(ExitStatus::Code(42)), 42),
            (Outcome::Exited(ExitStatus::Signal(11)), 139),
            (failed(FailureKind::NotFound), 127),
            (failed(FailureKind::NotExecutable), 126),
            (failed(FailureKind::Agent), 125),
            (Outcome::Interrupted { signal: 2 }, 130),
            (Outcome::Exited(ExitStatus::Signal(255)), 255),
        ];
        for (outcome, code) in cases {
            assert_eq!(outcome.exit_code(), code, "{outcome:?}");
        }
    }
}
