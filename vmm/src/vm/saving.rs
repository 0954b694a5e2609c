//! Saving a VM while it runs.
//!
//! ```text
//! saver thread:  dirty log on ─► all pages ─► pages written meanwhile, again ─┐             ┌─► rest of the files ─► Saved
//!                                                                             ▼ Copied      │
//! owner:         … runs the guest and its devices …                 pause ─► freeze ─► resume …
//! ```
//!
//! The pause is for the state and for copying what the guest wrote since the last look, not for the disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::GuestRam;

use super::{VmState, WrongState};
use crate::control::{Answer, Asked};
use crate::dirty::DirtyLog;
use crate::report::{Report, Reporter};
use crate::seccomp::Filter;
use crate::snapshot::{
    Base, Copied, Description, Fingerprint, Identity, PageSet, SnapshotId, Times, WriteError, Writer, Written,
};
use crate::vm::snapshot::SnapshotError;

/// So few pages are left for the pause.
const FEW_PAGES: usize = 256;
/// Copying what was written meanwhile ends after so many times, for a guest that writes faster than the disk.
const MAX_ROUNDS: usize = 6;
/// At most so many pages (64 MiB) are copied to be written after the pause; more are written within it.
const MAX_COPIED_PAGES: usize = 16 << 10;

/// Memory and state.
pub type SnapshotFiles = Arc<[File; 2]>;

/// What to save, and where.
#[derive(Clone, Debug, Default)]
pub struct SaveOrder {
    /// The directory to make.
    pub directory: PathBuf,
    /// Save only what was written since this snapshot.
    pub base: Option<SnapshotId>,
    /// Log writes from now on, so that this can be a base.
    pub track: bool,
    /// What whoever loads it wants to find in it.
    pub note: Vec<u8>,
    /// Its files, memory and state, where the process that saves cannot make them.
    pub files: Option<SnapshotFiles>,
}

impl SaveOrder {
    /// A full snapshot, which is nobody's base.
    pub fn full(directory: &Path) -> Self {
        SaveOrder { directory: directory.to_owned(), ..SaveOrder::default() }
    }

    fn logs(&self) -> bool {
        self.track || self.base.is_some()
    }
}

/// A VM's dirty log, which a saver thread and the VM's owner use in turn.
pub type SharedLog = Arc<Mutex<DirtyLog>>;

/// Locks `log`.
pub fn locked(log: &SharedLog) -> MutexGuard<'_, DirtyLog> {
    log.lock().expect("invariant: nobody panics while holding the lock")
}

/// One snapshot on its way to the disk.
#[derive(Clone)]
pub struct Save {
    order: SaveOrder,
    id: SnapshotId,
    writer: Arc<Writer>,
    log: SharedLog,
}

/// What the VM was at the moment of the snapshot.
pub struct Frozen {
    /// The machine.
    pub fingerprint: Fingerprint,
    /// Its state.
    pub state: VmState,
    /// When.
    pub times: Times,
    /// Pages that are still to be written.
    rest: Copied,
    /// Bytes that were written during the pause.
    written: u64,
}

impl Save {
    /// Begins to write, if the VM's pages are known since `order.base`.
    pub fn begin(order: SaveOrder, log: SharedLog) -> Result<Self, SnapshotError> {
        let known = locked(&log).base();
        if order.base.is_some() && order.base != known {
            return Err(SnapshotError::Base { known });
        }
        let writer = Arc::new(match order.files.as_deref() {
            Some([memory, state]) => {
                let own = |file: &File| file.try_clone().map_err(SnapshotError::Copy);
                Writer::into_files(&order.directory, [own(memory)?, own(state)?])
            }
            None => Writer::create(&order.directory)?,
        });
        let id = SnapshotId::draw().map_err(WriteError::from)?;
        Ok(Save { order, id, writer, log })
    }

    /// Writes what is there now; gives the bytes. The guest may run, `logged` then says that its writes are.
    pub fn write_now(&self, logged: bool) -> Result<u64, SnapshotError> {
        let mut log = locked(&self.log);
        if logged {
            log.start()?;
        }
        // Forgotten: what was written before now is written to the file from here on.
        if log.is_on() {
            log.take()?;
        }
        let memory = log.memory().clone();
        let pending = log.pending().clone();
        drop(log);
        match self.order.base {
            None => Ok(self.writer.write_all(&memory)?),
            Some(_) => Ok(self.writer.write_pages(&memory, &pending)?),
        }
    }

    /// Writes what the running guest changed meanwhile, until it is little.
    fn catch_up(&self) -> Result<u64, SnapshotError> {
        let mut bytes = 0;
        for _ in 0..MAX_ROUNDS {
            let (memory, pages) = {
                let mut log = locked(&self.log);
                (log.memory().clone(), log.take()?)
            };
            bytes += self.writer.write_pages(&memory, &pages)?;
            if pages.count() <= FEW_PAGES {
                break;
            }
        }
        Ok(bytes)
    }

    /// Keeps the rest of what the paused guest wrote.
    pub fn freeze(
        &self,
        fingerprint: Fingerprint,
        state: VmState,
        times: Times,
    ) -> Result<Frozen, SnapshotError> {
        let mut log = locked(&self.log);
        let pages = if log.is_on() { log.take()? } else { PageSet::default() };
        let (mut written, mut few) = (0, pages);
        if few.count() > MAX_COPIED_PAGES {
            written = self.writer.write_pages(log.memory(), &few)?;
            few = PageSet::default();
        }
        let rest = self.copy(log.memory(), &few)?;
        Ok(Frozen { fingerprint, state, times, rest, written })
    }

    fn copy(&self, memory: &GuestRam, pages: &PageSet) -> Result<Copied, SnapshotError> {
        Copied::of(memory, pages).map_err(SnapshotError::Copy)
    }

    /// Writes what is left, gives the snapshot its name and the log its new base. The guest may run.
    pub fn finish(&self, frozen: &Frozen) -> Result<u64, SnapshotError> {
        let bytes = frozen.written + self.writer.write_copied(&frozen.rest)?;
        // Nothing was taken since the freeze, so these are the pages of the file.
        let mut log = locked(&self.log);
        let base = match self.order.base {
            Some(base) => Some(Base::new(base, log.pending()).ok_or(WriteError::Scattered)?),
            None => None,
        };
        self.writer.publish(&Description {
            fingerprint: &frozen.fingerprint,
            state: &frozen.state,
            times: frozen.times,
            identity: &Identity { id: self.id, base },
            note: &self.order.note,
        })?;
        if self.order.logs() {
            log.start()?;
            log.commit(self.id);
        } else {
            log.stop()?;
        }
        Ok(bytes)
    }

    /// Body of the thread.
    fn run(&self, reporter: &Reporter, frozen: &Receiver<Frozen>) -> Result<Written, SnapshotError> {
        let mut memory_bytes = self.write_now(true)? + self.catch_up()?;
        reporter.send(Report::Copied);
        let frozen = frozen.recv().map_err(|_| SnapshotError::Abandoned)?;
        memory_bytes += self.finish(&frozen)?;
        Ok(Written { memory_bytes })
    }
}

/// A save under way, as the owner of the VM sees it.
pub struct Saving {
    /// What is being written.
    pub save: Save,
    /// Leave the VM paused.
    pub stay_paused: bool,
    /// How long the VM was paused.
    pub paused: Option<Duration>,
    /// Why it cannot go on, if the owner found that out.
    pub failed: Option<SnapshotError>,
    asked: Asked,
    frozen: Option<Sender<Frozen>>,
    thread: Option<JoinHandle<()>>,
}

impl Saving {
    /// Starts the thread, which sends [`Report::Copied`] and, at the end of it all, [`Report::Saved`].
    pub fn start(
        save: Save,
        stay_paused: bool,
        asked: Asked,
        reporter: Reporter,
        filter: Option<Filter>,
    ) -> Result<Self, Box<(std::io::Error, Asked)>> {
        let (sender, frozen) = mpsc::channel();
        let work = save.clone();
        let logged_before = locked(&save.log).is_on();
        let thread = std::thread::Builder::new().name("saver".into()).spawn(move || {
            let filtered = filter.map_or(Ok(()), |filter| filter.install()).map_err(SnapshotError::Copy);
            let result = filtered.and_then(|()| work.run(&reporter, &frozen));
            if result.is_err() && !logged_before {
                // The error being reported matters more.
                let _ = locked(&work.log).stop();
            }
            drop(work);
            reporter.send(Report::Saved(result));
        });
        match thread {
            Ok(thread) => {
                let (frozen, thread) = (Some(sender), Some(thread));
                Ok(Saving { save, stay_paused, paused: None, failed: None, asked, frozen, thread })
            }
            Err(error) => Err(Box::new((error, asked))),
        }
    }

    /// The VM shall be paused afterwards, and there is somebody who will let it go on.
    pub fn stays_paused(&self) -> bool {
        self.stay_paused && !self.asked.is_abandoned()
    }

    /// Answers who waits for it.
    pub fn answer(&self, answer: &Answer) {
        self.asked.answer(answer);
    }

    /// Hands over what the thread waits for; nothing makes it give up.
    pub fn hand_over(&mut self, frozen: Option<Frozen>, begin: Instant) {
        self.paused = Some(begin.elapsed());
        if let (Some(sender), Some(frozen)) = (self.frozen.take(), frozen) {
            // Fails only when the thread gave up, which it reports.
            let _ = sender.send(frozen);
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        self.frozen = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A second snapshot was asked for before the first was written.
pub fn busy() -> WrongState {
    WrongState { request: "save", state: "being saved" }
}
