//! Another file behind a disk, while the guest runs.
//!
//! The driver hears of the new capacity (virtio 1.2, section 5.2.5). What it read of the old medium is in its own
//! cache: whoever changes a medium sees to it that the guest has unmounted it.

use std::path::Path;

use super::config_space::SECTOR_SIZE;
use super::mapped::MappedDisk;
use super::{Block, open_disk};
use crate::virtio::device::VirtioDevice as _;

impl Block {
    /// Puts the file `path` in place of the medium, read-only as the old one was.
    pub(super) fn replace_medium(&mut self, path: &Path) -> Result<(), String> {
        let (file, size) = open_disk(path, self.disk.read_only).map_err(|error| match &error {
            super::BlockError::OpenDisk { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        })?;
        // A protocol violation of the guest would end its device anyway, and meets it at its next request.
        let _ = self.quiesce();
        // The ring has the old file; the next request that needs one makes another.
        self.ring_changed |= self.ring.take().is_some();
        self.backend.mapped = MappedDisk::open(&file, size);
        self.backend.file = file;
        self.disk.capacity_sectors = size / SECTOR_SIZE;
        Ok(())
    }
}
