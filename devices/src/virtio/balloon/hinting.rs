//! Free page hinting (virtio 1.2, section 5.5.6.5): the host asks which pages are free, once.
//!
//! ```text
//! host ── command ID in the configuration ─► driver takes free pages, ID and ranges on its queue ─► given back
//!                                            driver ends with STOP, and keeps the pages
//! host ── DONE ─► driver lets the pages be used again
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

/// VIRTIO_BALLOON_CMD_ID_STOP: nothing is asked for; or the driver has sent all.
pub const STOP: u32 = 0;
/// VIRTIO_BALLOON_CMD_ID_DONE: the guest may use the pages again.
pub const DONE: u32 = 1;
/// The lowest command that starts a run.
const FIRST: u32 = 2;

/// Pages cannot be asked for.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HintingError {
    /// It was not configured.
    #[error("free page hinting is not enabled: set free_page_hinting before the start")]
    Disabled,
    /// No driver has said that it is ready.
    #[error("the guest has no driver for it, or has not come so far: try again later")]
    NotActive,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintingStatus {
    /// The host's command.
    pub host: u32,
    /// The driver's last word, if it said one.
    pub guest: Option<u32>,
}

/// Runs of hinting, of which there is one at a time.
#[derive(Debug, Default)]
pub struct Hinting(Mutex<Run>);

#[derive(Debug, Default)]
struct Run {
    status: HintingStatus,
    /// Of the run before.
    last: u32,
    /// The driver's end of a run is its DONE.
    acknowledge: bool,
    active: bool,
}

impl Hinting {
    /// How far it is.
    pub fn status(&self) -> HintingStatus {
        self.lock().status
    }

    /// Begins a run; whether one is under way does not matter.
    pub(super) fn start(&self, acknowledge: bool) -> Result<(), HintingError> {
        let mut run = self.running()?;
        run.last = run.last.checked_add(1).unwrap_or(FIRST).max(FIRST);
        run.status.host = run.last;
        run.acknowledge = acknowledge;
        Ok(())
    }

    /// Ends a run.
    pub(super) fn stop(&self) -> Result<(), HintingError> {
        self.running()?.status.host = DONE;
        Ok(())
    }

    /// A driver is there, or no more.
    pub(super) fn set_active(&self, active: bool) {
        let mut run = self.lock();
        *run = Run { active, last: run.last, ..Run::default() };
    }

    /// In a restored VM no run goes on; its guest may use its pages.
    pub(super) fn restored(&self) {
        self.lock().status.host = DONE;
    }

    /// The driver said `word`; true if that ends the run.
    pub(super) fn hear(&self, word: u32) -> bool {
        let mut run = self.lock();
        run.status.guest = Some(word);
        let ends = word == STOP && run.acknowledge && run.status.host >= FIRST;
        if ends {
            run.status.host = DONE;
        }
        ends
    }

    /// Ranges that come now belong to the run.
    pub(super) fn is_wanted(&self) -> bool {
        let HintingStatus { host, guest } = self.status();
        host >= FIRST && guest == Some(host)
    }

    fn running(&self) -> Result<MutexGuard<'_, Run>, HintingError> {
        let run = self.lock();
        if run.active { Ok(run) } else { Err(HintingError::NotActive) }
    }

    fn lock(&self) -> MutexGuard<'_, Run> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
