//! What a snapshot is of: `snapshot.json`.

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::container::spec::ContainerSpec;

/// Version of the file.
pub const SCHEMA: &str = "lighter.snapshot.v1";
/// Largest one that is read. Stops a file from filling memory.
const MAX_BYTES: u64 = 4 << 20;

/// A snapshot's description.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// [`SCHEMA`]
    pub schema: String,
    /// When it was made, in ns since 1970.
    pub created_ns: u64,
    /// Name of the container then.
    pub container: String,
    /// Microseconds for which the container stood still.
    pub paused_us: u64,
    /// The container.
    pub spec: ContainerSpec,
}

impl Manifest {
    /// Name of its file in a snapshot.
    pub const FILE: &str = "snapshot.json";

    /// Reads that of the snapshot in `directory`.
    pub fn read(directory: &Path) -> Result<Self, SnapshotError> {
        let path = directory.join(Self::FILE);
        let unusable = |why: String| SnapshotError::Manifest { path: directory.to_owned(), why };
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
            .map_err(super::file("read", &path))?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        if manifest.schema != SCHEMA {
            return Err(unusable(format!("its format is {:?}, not {SCHEMA:?}", manifest.schema)));
        }
        Ok(manifest)
    }
}
