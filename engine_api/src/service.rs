//! What all requests share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::container::cache::RecordCache;
use engine::dirs::Dirs;
use engine::network::Networks;
use engine::snapshot::SnapshotStore;
use engine::template::TemplateStore;

use crate::hub::Hub;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::tenant::{Caller, Tokens};

/// Dead containers are looked for at most this often.
const SWEEP: Duration = Duration::from_millis(500);

/// The server's state: nothing of it outlives the process.
#[derive(Debug)]
pub struct Service {
    /// The installation.
    pub dirs: Dirs,
    /// Who may call, if that is asked.
    pub tokens: Option<Tokens>,
    /// The log.
    pub log: Log,
    /// Figures.
    pub metrics: Metrics,
    /// Containers that were listed before.
    pub records: RecordCache,
    /// Version of lighter.
    pub version: &'static str,
    hubs: Mutex<BTreeMap<PathBuf, Arc<Hub>>>,
    swept: Mutex<BTreeMap<PathBuf, Instant>>,
}

impl Service {
    /// Of the installation `dirs`.
    pub fn new(dirs: Dirs, tokens: Option<Tokens>, version: &'static str) -> std::io::Result<Self> {
        Ok(Self {
            dirs,
            tokens,
            log: Log::new()?,
            metrics: Metrics::default(),
            records: RecordCache::default(),
            version,
            hubs: Mutex::default(),
            swept: Mutex::default(),
        })
    }

    /// The events of `caller`.
    pub fn hub(&self, caller: &Caller) -> Arc<Hub> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hubs.entry(caller.dirs.data.clone()).or_insert_with(|| Hub::new(&caller.dirs)))
    }

    /// Ends all streams of events.
    pub fn close(&self) {
        self.hubs.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|hub| hub.close());
    }

    /// Makes the caller's directories, and ends and removes what dead keepers left, as every command does first.
    pub fn prepare(&self, caller: &Caller) -> Result<(), Problem> {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            match swept.get(&caller.dirs.data) {
                Some(then) if now.duration_since(*then) < SWEEP => return Ok(()),
                _ => drop(swept.insert(caller.dirs.data.clone(), now)),
            }
        }
        caller.dirs.create()?;
        engine::container::sweep::sweep(&caller.dirs)?;
        TemplateStore::new(&caller.dirs).sweep();
        SnapshotStore::new(&caller.dirs).sweep();
        Networks::here(&caller.dirs)?.sweep();
        Ok(())
    }
}
