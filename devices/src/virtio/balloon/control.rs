//! The host's end of a balloon: how large it should be and how large it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::hinting::{Hinting, HintingError, HintingStatus};
use super::statistics::Statistics;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

/// A balloon cannot have the size asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a balloon of {mib} MiB: the guest has {max} MiB")]
pub struct TargetError {
    /// What was asked for.
    pub mib: u32,
    /// The guest's RAM.
    pub max: u32,
}

/// Steers one balloon; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct BalloonControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// RAM of the guest, in pages like the others.
    max: u32,
    target: AtomicU32,
    actual: AtomicU32,
    /// Signalled when the target changed.
    changed: EventFd,
    statistics: Option<Statistics>,
    hinting: Option<Hinting>,
}

impl BalloonControl {
    pub(super) fn new(
        max: u32,
        statistics: Option<Statistics>,
        hinting: Option<Hinting>,
    ) -> io::Result<Self> {
        let changed = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (target, actual) = (AtomicU32::new(0), AtomicU32::new(0));
        Ok(Self(Arc::new(Shared { max, target, actual, changed, statistics, hinting })))
    }

    /// Asks the guest to leave `mib` MiB of its RAM unused. It does so as it can: [`Self::actual_mib`] says
    /// how far it got, and it may take memory back when it runs out.
    pub fn set_target(&self, mib: u32) -> Result<(), TargetError> {
        let max = self.0.max;
        let pages = mib.checked_mul(PAGES_PER_MIB).filter(|&pages| pages <= max);
        let pages = pages.ok_or(TargetError { mib, max: max / PAGES_PER_MIB })?;
        self.0.target.store(pages, Ordering::Relaxed);
        self.notify();
        Ok(())
    }

    /// What was asked for last, in MiB.
    pub fn target_mib(&self) -> u32 {
        self.target_pages() / PAGES_PER_MIB
    }

    /// What the guest says it leaves unused, in MiB; nothing vouches for it.
    pub fn actual_mib(&self) -> u32 {
        self.actual_pages() / PAGES_PER_MIB
    }

    /// What the guest says about its memory, if it was to be asked.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.0.statistics.as_ref()
    }

    /// Asks the guest which pages it does not use, to give them back to the host. With `acknowledge` it may use them
    /// again as soon as it has named all, without when [`Self::stop_hinting`] says so.
    pub fn start_hinting(&self, acknowledge: bool) -> Result<(), HintingError> {
        self.hinting()?.start(acknowledge)?;
        self.notify();
        Ok(())
    }

    /// Lets the guest use the pages again that it has named.
    pub fn stop_hinting(&self) -> Result<(), HintingError> {
        self.hinting()?.stop()?;
        self.notify();
        Ok(())
    }

    /// How far the guest is with that.
    pub fn hinting_status(&self) -> Result<HintingStatus, HintingError> {
        Ok(self.hinting()?.status())
    }

    pub(super) fn hinting(&self) -> Result<&Hinting, HintingError> {
        self.0.hinting.as_ref().ok_or(HintingError::Disabled)
    }

    /// The configuration space changed.
    pub(super) fn notify(&self) {
        // Fails only when it is signalled already.
        let _ = self.0.changed.write(1);
    }

    pub(super) fn target_pages(&self) -> u32 {
        self.0.target.load(Ordering::Relaxed)
    }

    pub(super) fn actual_pages(&self) -> u32 {
        self.0.actual.load(Ordering::Relaxed)
    }

    pub(super) fn set_actual_pages(&self, pages: u32) {
        self.0.actual.store(pages, Ordering::Relaxed);
    }

    /// Loads saved values; false if the target is more than there is.
    pub(super) fn restore(&self, target: u32, actual: u32) -> bool {
        if target > self.0.max {
            return false;
        }
        self.0.target.store(target, Ordering::Relaxed);
        self.0.actual.store(actual, Ordering::Relaxed);
        true
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.0.changed
    }
}
