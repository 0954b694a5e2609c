//! Which snapshot this is, and for a differential one: of which it is a difference, in which pages.

use std::fs::File;
use std::ops::Range;
use std::{fmt, io};

use devices::GuestRam;
use serde::{Deserialize, Serialize};

use super::memory_file;
use super::pages::PageSet;

/// More runs than a differential snapshot has. Bounds its state file.
const MAX_RUNS: usize = 1 << 20;

/// A random number that no other snapshot has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct SnapshotId([u8; 16]);

impl SnapshotId {
    /// Draws one.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        Ok(SnapshotId(id))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Pages next to each other, numbered as they lie in the memory file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PageRun {
    start: u32,
    count: u32,
}

impl PageRun {
    /// Their numbers.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.count as usize
    }
}

/// What a snapshot is in a chain.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// Its own.
    pub id: SnapshotId,
    /// What it differs from; `None` for a full one.
    pub base: Option<Base>,
}

/// What a differential snapshot stands on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Base {
    /// The snapshot before it.
    pub id: SnapshotId,
    /// The pages that its memory file has; the others are the base's.
    pub pages: Vec<PageRun>,
}

impl Base {
    /// `pages` beside those of snapshot `id`; `None` if they are too scattered.
    pub fn new(id: SnapshotId, pages: &PageSet) -> Option<Self> {
        let runs = pages.runs().take(MAX_RUNS + 1);
        let pages: Vec<_> =
            runs.map(|run| PageRun { start: run.start as u32, count: run.len() as u32 }).collect();
        (pages.len() <= MAX_RUNS).then_some(Base { id, pages })
    }

    /// Reads the pages that `file` has to where they belong in `memory`.
    pub fn load(&self, memory: &GuestRam, file: &File) -> io::Result<()> {
        memory_file::read_runs(memory, &self.pages, file)
    }
}
