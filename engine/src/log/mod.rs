//! What a container's process wrote, with time and stream: `log/NUMBER` below the container's data directory.
//!
//! ```text
//! record = stream (1 byte: 1 stdout, 2 stderr) │ length (u32 LE) │ ns since 1970 (u64 LE) │ bytes
//! ```
//!
//! The keeper writes, anybody reads. A file that is full is followed by the next number; the oldest go.

pub mod reader;
pub mod writer;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Bytes before each record's own.
const HEADER: usize = 1 + 4 + 8;
/// Longest record that is believed: the agent's chunks are shorter.
const MAX_RECORD: usize = 1 << 20;

/// How much is kept.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct LogSpec {
    /// Bytes of one file.
    pub max_size: u64,
    /// How many files.
    pub max_file: u32,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { max_size: 64 << 20, max_file: 4 }
    }
}

/// Where it was written to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Some bytes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where they were written to.
    pub stream: Stream,
    /// When they arrived, in ns since 1970.
    pub time_ns: u64,
    /// Themselves.
    pub bytes: Vec<u8>,
}

/// The numbers of the log files in `directory`, ascending.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = match std::fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    numbers.sort_unstable();
    Ok(numbers)
}

fn file(directory: &Path, number: u64) -> PathBuf {
    directory.join(number.to_string())
}
