//! Which guest pages were written since the last snapshot: by vCPUs and KVM (its dirty log) and by this
//! process (the bitmaps of the regions).
//!
//! ```text
//! start ──► on ── take, take, … ──► pending ── commit(id) ──► base = id, nothing pending
//!                                      └────── save failed ──► still pending, for the next one
//! ```

use std::sync::Arc;

use devices::GuestRam;
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap, MmapRegion};
use vmm_sys_util::errno;

use crate::memory::{self, MemoryError};
use crate::snapshot::{PAGE, PageSet, SnapshotId};

/// Why dirty pages are not known.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// KVM does not keep the log.
    #[error("cannot turn the dirty log on or off")]
    Switch(#[from] MemoryError),
    /// KVM does not give the log.
    #[error("cannot read the dirty log of memory slot {slot}")]
    Read {
        /// Number of the slot.
        slot: u32,
        /// Why.
        source: errno::Error,
    },
}

/// The dirty pages of one VM.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: GuestRam,
    on: bool,
    /// What was written since `base`, as far as it was taken.
    pending: PageSet,
    base: Option<SnapshotId>,
}

impl DirtyLog {
    /// The log of `memory`, whose slots were registered with it on if there is a `base`: what it was restored from.
    pub fn new(vm: Arc<VmFd>, memory: GuestRam, base: Option<SnapshotId>) -> Self {
        let pages = memory.iter().map(|region| region.len() as usize / PAGE).sum();
        DirtyLog { vm, memory, on: base.is_some(), pending: PageSet::new(pages), base }
    }

    /// Whether writes are logged.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The snapshot that pending pages differ from. None while the log is off.
    pub fn base(&self) -> Option<SnapshotId> {
        self.base
    }

    /// Everything taken since the base.
    pub fn pending(&self) -> &PageSet {
        &self.pending
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// Turns the log on. Milliseconds, in which the guest may run.
    pub fn start(&mut self) -> Result<(), DirtyError> {
        if !self.on {
            for region in self.memory.iter() {
                if let Some(bitmap) = own_bitmap(region) {
                    bitmap.reset();
                }
            }
            memory::register(&self.vm, &self.memory, true)?;
            self.on = true;
        }
        Ok(())
    }

    /// Turns the log off: there is no base any more.
    pub fn stop(&mut self) -> Result<(), DirtyError> {
        self.base = None;
        self.pending.clear();
        if std::mem::take(&mut self.on) {
            memory::register(&self.vm, &self.memory, false)?;
        }
        Ok(())
    }

    /// What was written since the last call. A page written meanwhile is in this result or in the next one.
    pub fn take(&mut self) -> Result<PageSet, DirtyError> {
        let mut words = Vec::new();
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let log = self.vm.get_dirty_log(slot, region.len() as usize);
            let mut log = log.map_err(|source| DirtyError::Read { slot, source })?;
            if let Some(bitmap) = own_bitmap(region) {
                log.iter_mut().zip(bitmap.get_and_reset()).for_each(|(log, own)| *log |= own);
            }
            words.extend(log);
        }
        let taken = PageSet::from_words(words);
        self.pending.merge(&taken);
        Ok(taken)
    }

    /// Snapshot `id` has everything that was taken: it is the base of the next one.
    pub fn commit(&mut self, id: SnapshotId) {
        self.pending.clear();
        self.base = Some(id);
    }
}

/// What this process writes into `region`.
fn own_bitmap(region: &GuestRegionMmap<Option<AtomicBitmap>>) -> Option<&AtomicBitmap> {
    let mapping: &MmapRegion<Option<AtomicBitmap>> = region;
    mapping.bitmap().as_ref()
}
