//! What all requests share.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::dirs::Dirs;
use engine::network::Networks;
use engine::snapshot::SnapshotStore;
use engine::template::TemplateStore;

use crate::hub::Hub;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::problem::{Kind, Problem};
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
    /// Version of lighter.
    pub version: &'static str,
    hubs: Mutex<BTreeMap<PathBuf, Arc<Hub>>>,
    swept: Mutex<BTreeMap<PathBuf, Instant>>,
    keys: Mutex<HashSet<String>>,
    /// Held while a container's description is compared and written.
    pub updating: Mutex<()>,
}

impl Service {
    /// Of the installation `dirs`.
    pub fn new(dirs: Dirs, tokens: Option<Tokens>, version: &'static str) -> std::io::Result<Self> {
        Ok(Self {
            dirs,
            tokens,
            log: Log::new()?,
            metrics: Metrics::default(),
            version,
            hubs: Mutex::default(),
            swept: Mutex::default(),
            keys: Mutex::default(),
            updating: Mutex::default(),
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

    /// Takes an idempotency key for the time of one request.
    pub fn take_key(self: &Arc<Self>, key: String) -> Result<TakenKey, Problem> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.insert(key.clone()) {
            true => Ok(TakenKey { service: Arc::clone(self), key }),
            false => Err(Problem::new(Kind::CONFLICT, "a request with this idempotency key is under way")),
        }
    }
}

/// An idempotency key in use; free again when dropped.
#[derive(Debug)]
pub struct TakenKey {
    service: Arc<Service>,
    key: String,
}

impl Drop for TakenKey {
    fn drop(&mut self) {
        self.service.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
