//! Records kept in memory, for a process that lists containers again and again.
//!
//! The files of a container are only ever replaced, never written in place ([`super::record::write_json`]), so each
//! change moves the time stamps of its directory: one `stat` tells whether what was read is still so.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Table;
use super::record::{self, Record};
use crate::dirs::Dirs;

/// Most bytes of files whose records are kept, of all directories together; what does not fit is read each time.
const MAX_BYTES: u64 = 16 << 20;
/// A directory that changed so short before it was read may change once more without another time stamp: file systems
/// count in ticks, some in seconds.
const SETTLED: Duration = Duration::from_secs(2);

/// Records that were read, by data directory and ID.
#[derive(Debug)]
pub struct RecordCache {
    known: Mutex<Known>,
    settled: Duration,
}

impl Default for RecordCache {
    fn default() -> Self {
        Self { known: Mutex::default(), settled: SETTLED }
    }
}

#[derive(Debug, Default)]
struct Known {
    places: HashMap<PathBuf, HashMap<String, Entry>>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    record: Arc<Record>,
    bytes: u64,
}

/// Inode, modification and change of a directory.
type Stamp = (u64, Duration, Duration);

impl RecordCache {
    /// All containers, oldest first, as [`record::list`] would read them now.
    pub fn list(&self, dirs: &Dirs) -> Vec<Arc<Record>> {
        let place = Table::data(dirs);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = known.places.remove(&place).unwrap_or_default();
        known.bytes -= before.values().map(|entry| entry.bytes).sum::<u64>();
        let mut now = HashMap::with_capacity(before.len());
        let mut records = Vec::with_capacity(before.len());
        for entry in std::fs::read_dir(&place).into_iter().flatten().flatten() {
            let Ok(id) = entry.file_name().into_string() else { continue };
            let settled = now_since_1970().saturating_sub(self.settled);
            let Some(stamp) = stamp(&entry.path()) else { continue };
            let entry = match before.remove(&id) {
                Some(entry) if entry.stamp == stamp => entry,
                _ => match record::read_with_size(dirs, &id) {
                    Ok((record, bytes)) => Entry { stamp, record: Arc::new(record), bytes },
                    Err(_) => continue,
                },
            };
            records.push(Arc::clone(&entry.record));
            if stamp.1.max(stamp.2) < settled && known.bytes + entry.bytes <= MAX_BYTES {
                known.bytes += entry.bytes;
                now.insert(id, entry);
            }
        }
        known.places.insert(place, now);
        drop(known);
        records.sort_by_key(|record| record.spec.created_ns);
        records
    }
}

fn now_since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn stamp(directory: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(directory).ok()?;
    let time =
        |seconds: i64, ns: i64| Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(ns).ok()?));
    let changed = time(metadata.ctime(), metadata.ctime_nsec())?;
    Some((metadata.ino(), time(metadata.mtime(), metadata.mtime_nsec())?, changed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::id::ContainerId;
    use crate::container::state::{State, Status};
    use crate::container::{Container, rename, spec, test_dirs};

    fn make(dirs: &Dirs, name: &str) -> Container {
        let mut container = Container::reserve(dirs, ContainerId::random(), Some(name)).unwrap();
        container.keep(&spec::tests::example(&container.id), &State::default()).unwrap();
        container
    }

    /// Quicker than [`SETTLED`], and still slower than the clocks of file systems here.
    fn quick() -> RecordCache {
        RecordCache { settled: Duration::from_millis(100), ..RecordCache::default() }
    }

    /// Lets the last change be old, and reads.
    fn settle(cache: &RecordCache, dirs: &Dirs) {
        std::thread::sleep(cache.settled + Duration::from_millis(50));
        cache.list(dirs);
    }

    fn kept(cache: &RecordCache) -> (usize, u64) {
        let known = cache.known.lock().unwrap();
        (known.places.values().map(HashMap::len).sum(), known.bytes)
    }

    #[test]
    fn what_another_process_changes_is_seen_at_once() {
        let base = tempfile::tempdir().unwrap();
        let (dirs, cache) = (test_dirs(base.path()), quick());
        let (first, second) = (make(&dirs, "barge"), make(&dirs, "ferry"));
        assert_eq!(cache.list(&dirs).len(), 2);
        assert_eq!(kept(&cache), (0, 0), "what has just changed is not settled");
        settle(&cache, &dirs);
        assert_eq!(kept(&cache).0, 2);
        let names = |cache: &RecordCache| -> Vec<String> {
            cache.list(&dirs).iter().map(|record| record.name.clone()).collect()
        };
        let status = |cache: &RecordCache| cache.list(&dirs)[0].state.status;
        // Faster than any file system's clock ticks.
        for turn in 0..200 {
            let wanted = if turn % 2 == 0 { Status::Running } else { Status::Exited };
            first.save(&State { status: wanted, ..State::default() }).unwrap();
            assert_eq!(status(&cache), wanted, "turn {turn}");
        }
        rename(&dirs, &second.id, "canoe").unwrap();
        assert_eq!(names(&cache), ["barge", "canoe"]);
        let mut changed = spec::tests::example(&first.id);
        changed.labels.insert("a".into(), "b".into());
        changed.created_ns = cache.list(&dirs)[0].spec.created_ns;
        first.describe(&changed).unwrap();
        assert_eq!(cache.list(&dirs)[0].spec.labels["a"], "b");
        first.remove();
        assert_eq!(names(&cache), ["canoe"]);
        second.remove();
        assert!(names(&cache).is_empty());
        assert_eq!(kept(&cache), (0, 0), "nothing is kept of what is gone");
    }

    #[test]
    fn records_that_stay_are_kept_and_no_more_than_fit() {
        let base = tempfile::tempdir().unwrap();
        let (dirs, cache) = (test_dirs(base.path()), quick());
        let containers = ["barge", "ferry"].map(|name| make(&dirs, name));
        let mut large = spec::tests::example(&containers[0].id);
        large.labels.insert("large".into(), "x".repeat(3 << 20));
        for (index, container) in containers.iter().enumerate() {
            large.id = container.id.clone();
            large.created_ns = index as u64;
            container.describe(&large).unwrap();
        }
        settle(&cache, &dirs);
        let (once, again) = (cache.list(&dirs), cache.list(&dirs));
        assert!(once.iter().zip(&again).all(|(one, other)| Arc::ptr_eq(one, other)));
        cache.known.lock().unwrap().bytes = MAX_BYTES;
        let other = test_dirs(&base.path().join("other"));
        let _third = make(&other, "canoe");
        settle(&cache, &other);
        assert_eq!(cache.list(&other).len(), 1);
        assert_eq!(kept(&cache).0, 2, "one more does not fit");
    }
}
