//! The host's end: how much memory the guest should have plugged in, and how much it has.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MemRegion;

/// The memory cannot have the size asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    /// No driver has said that it is ready.
    #[error("the guest has no driver for it, or has not come so far: try again later")]
    NotActive,
    /// It is no number of blocks, or more than there is.
    #[error(
        "{size} bytes: it takes a multiple of the block size, {block} bytes, and at most {total} bytes in all"
    )]
    Size {
        /// What was asked for.
        size: u64,
        /// Of a block.
        block: u64,
        /// Of the region.
        total: u64,
    },
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// What the host wants the guest to have.
    pub requested: u64,
    /// What the guest has.
    pub plugged: u64,
    /// From the start of the region on, blocks that may be plugged.
    pub(super) usable: u64,
    pub(super) active: bool,
}

/// Steers one device; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct MemControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    region: MemRegion,
    sizes: Mutex<Sizes>,
    /// Signalled when the request changed.
    changed: EventFd,
}

impl MemControl {
    pub(super) fn new(region: MemRegion) -> io::Result<Self> {
        let changed = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared { region, sizes: Mutex::default(), changed })))
    }

    /// Asks the guest to have `size` bytes of the region. It does so as it can: [`Self::sizes`] says how far it got.
    pub fn request(&self, size: u64) -> Result<(), SizeError> {
        let MemRegion { size: total, block, .. } = self.0.region;
        let mut sizes = self.lock();
        if !sizes.active {
            return Err(SizeError::NotActive);
        }
        if size > total || !size.is_multiple_of(block) {
            return Err(SizeError::Size { size, block, total });
        }
        sizes.requested = size;
        // It shrinks only when the driver unplugs everything (section 5.15.5).
        sizes.usable = sizes.usable.max(size);
        drop(sizes);
        // Fails only when it is signalled already.
        let _ = self.0.changed.write(1);
        Ok(())
    }

    /// How large it is and should be.
    pub fn sizes(&self) -> Sizes {
        *self.lock()
    }

    /// Where it is.
    pub fn region(&self) -> MemRegion {
        self.0.region
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Sizes> {
        self.0.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.0.changed
    }
}
