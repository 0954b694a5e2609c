//! What went wrong with which file.

use std::io;
use std::path::Path;

/// Characters of a path that an error shows.
const SHOWN: usize = 500;

/// A failed step.
#[derive(Debug)]
pub enum ArchiveError {
    /// The system refused something.
    File {
        /// What was attempted, on which file.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The request or the stream is not acceptable.
    Refused(String),
}

impl std::fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { what, source } => write!(f, "cannot {what}: {source}"),
            Self::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ArchiveError {}

impl ArchiveError {
    /// Why `path` is not acceptable.
    pub fn refused(path: &Path, why: &str) -> Self {
        Self::Refused(format!("{}: {why}", shown(path)))
    }
}

/// Names what was attempted on which file.
pub trait On<T> {
    /// `cannot ACTION PATH: reason`.
    fn on(self, action: &str, path: &Path) -> Result<T, ArchiveError>;
}

impl<T, E: Into<io::Error>> On<T> for Result<T, E> {
    fn on(self, action: &str, path: &Path) -> Result<T, ArchiveError> {
        self.map_err(|error| {
            let what = format!("{action} {}", shown(path));
            ArchiveError::File { what, source: error.into() }
        })
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(SHOWN).collect()
}
