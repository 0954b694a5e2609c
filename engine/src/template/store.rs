//! Where templates are, and who uses them.
//!
//! Each is a directory that its users have locked shared, so that only unused ones are removed. A directory is
//! renamed into place when it is complete; what else is there belongs to a maker, or to one that died.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Key;
use crate::dirs::Dirs;
use crate::lock::Lock;

/// Suffix of a maker's lock.
const LOCK: &str = "lock";
/// Suffix of a directory that is being made.
const PARTIAL: &str = "making";

/// All templates of an installation.
#[derive(Clone, Debug)]
pub struct TemplateStore {
    directory: PathBuf,
}

/// A template in use: it is not removed meanwhile.
#[derive(Debug)]
pub struct Template {
    directory: PathBuf,
    _in_use: File,
}

/// What templates take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// How many there are.
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Of them, bytes of templates that nobody uses.
    pub reclaimable: u64,
}

impl TemplateStore {
    /// The store of `dirs`; nothing is made.
    pub fn new(dirs: &Dirs) -> Self {
        Self { directory: dirs.data.join("templates") }
    }

    /// The template `key`, if it was made.
    pub fn find(&self, key: &Key) -> Option<Template> {
        Template::open(&self.directory.join(key.as_str()))
    }

    /// Locks the making of `key`; `None` while somebody else makes it.
    pub(super) fn try_lock(&self, key: &Key) -> io::Result<Option<MakerLock>> {
        std::fs::create_dir_all(&self.directory)?;
        MakerLock::try_acquire(self.directory.join(key.as_str()).with_extension(LOCK))
    }

    /// A new, empty directory to make `key` in. Its maker's lock is held.
    pub(super) fn begin(&self, key: &Key) -> io::Result<PathBuf> {
        let path = self.partial(key);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir(&path)?;
        Ok(path)
    }

    /// Publishes what was made by [`TemplateStore::begin`].
    pub(super) fn publish(&self, key: &Key) -> io::Result<Option<Template>> {
        std::fs::rename(self.partial(key), self.directory.join(key.as_str()))?;
        Ok(self.find(key))
    }

    /// Removes the template `key`, which turned out not to be usable here.
    pub fn discard(&self, template: Template) {
        // Renamed first: whoever looks for it meanwhile finds nothing rather than half of it.
        let away = template.directory.with_extension(PARTIAL);
        if std::fs::rename(&template.directory, &away).is_ok() {
            let _ = std::fs::remove_dir_all(away);
        }
    }

    /// Removes what dead makers left; every command of lighter does it first.
    pub fn sweep(&self) {
        for path in self.entries().iter().filter(|path| path.extension().is_some()) {
            // What cannot be removed now is met again by the next command.
            if path.is_dir() {
                remove_unused(path);
            } else {
                let _ = MakerLock::try_acquire(path.clone());
            }
        }
    }

    /// Removes templates that nobody uses, and what dead makers left; gives what was freed.
    pub fn prune(&self) -> Usage {
        let mut freed = Usage::default();
        for path in self.directories() {
            let Some(usage) = remove_unused(&path) else { continue };
            freed.count += usage.count;
            freed.bytes += usage.bytes;
        }
        freed
    }

    /// What all of them take.
    pub fn usage(&self) -> Usage {
        let mut total = Usage::default();
        for path in self.directories() {
            let bytes = size(&path);
            total.count += 1;
            total.bytes += bytes;
            if matches!(Lock::try_acquire_dir(&path), Ok(Some(_))) {
                total.reclaimable += bytes;
            }
        }
        total
    }

    fn directories(&self) -> Vec<PathBuf> {
        self.entries().into_iter().filter(|path| path.is_dir()).collect()
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    fn partial(&self, key: &Key) -> PathBuf {
        self.directory.join(key.as_str()).with_extension(PARTIAL)
    }
}

impl Template {
    fn open(directory: &Path) -> Option<Self> {
        let in_use = File::open(directory).ok()?;
        in_use.try_lock_shared().ok()?;
        // Removed between the two calls above: the lock is on something that nobody finds any more.
        let there = directory.metadata().ok()?;
        let opened = in_use.metadata().ok()?;
        ((there.dev(), there.ino()) == (opened.dev(), opened.ino()))
            .then(|| Self { directory: directory.to_owned(), _in_use: in_use })
    }

    /// The machine.
    pub fn snapshot(&self) -> PathBuf {
        snapshot(&self.directory)
    }

    /// Its writable layer, to be copied.
    pub fn layer(&self) -> PathBuf {
        layer(&self.directory)
    }
}

/// The snapshot within a template's directory.
pub(super) fn snapshot(directory: &Path) -> PathBuf {
    directory.join("snapshot")
}

/// The writable layer within a template's directory.
pub(super) fn layer(directory: &Path) -> PathBuf {
    directory.join("layer.ext4")
}

/// The right to make one template. Its file goes with it.
#[derive(Debug)]
pub struct MakerLock {
    path: PathBuf,
    _lock: Lock,
}

impl MakerLock {
    fn try_acquire(path: PathBuf) -> io::Result<Option<Self>> {
        let lock = Lock::try_acquire_removable(&path)?;
        Ok(lock.map(|lock| Self { path, _lock: lock }))
    }
}

impl Drop for MakerLock {
    fn drop(&mut self) {
        // While the lock is held; what stays is met again by the next command.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a template or a maker's directory unless somebody uses it.
fn remove_unused(path: &Path) -> Option<Usage> {
    // A maker holds the lock beside its directory, a user the directory itself.
    let _maker = match path.extension() {
        Some(_) => Some(MakerLock::try_acquire(path.with_extension(LOCK)).ok()??),
        None => None,
    };
    let _unused = Lock::try_acquire_dir(path).ok()??;
    let bytes = size(path);
    std::fs::remove_dir_all(path).ok()?;
    Some(Usage { count: 1, bytes, reclaimable: 0 })
}

/// Bytes on disk of the files below `path`.
fn size(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some(if meta.is_dir() { size(&entry.path()) } else { meta.blocks() * 512 })
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::test_dirs;

    fn store() -> (tempfile::TempDir, TemplateStore) {
        let base = tempfile::tempdir().unwrap();
        let store = TemplateStore::new(&test_dirs(base.path()));
        (base, store)
    }

    fn make(store: &TemplateStore, key: &Key) -> Template {
        let _lock = store.try_lock(key).unwrap().unwrap();
        let directory = store.begin(key).unwrap();
        std::fs::write(layer(&directory), "layer").unwrap();
        store.publish(key).unwrap().unwrap()
    }

    #[test]
    fn a_template_is_found_once_it_is_complete() {
        let (_base, store) = store();
        let key = Key::test("k");
        assert!(store.find(&key).is_none());
        let lock = store.try_lock(&key).unwrap();
        assert!(store.try_lock(&key).unwrap().is_none());
        store.begin(&key).unwrap();
        assert!(store.find(&key).is_none());
        store.publish(&key).unwrap().unwrap();
        drop(lock);
        assert_eq!(std::fs::read_dir(&store.directory).unwrap().count(), 1);
    }

    #[test]
    fn only_what_nobody_uses_is_pruned() {
        let (_base, store) = store();
        let used = make(&store, &Key::test("used"));
        drop(make(&store, &Key::test("unused")));
        std::fs::create_dir(store.directory.join("dead.making")).unwrap();
        let usage = store.usage();
        std::fs::create_dir(store.directory.join("killed.making")).unwrap();
        std::fs::write(store.directory.join("killed.lock"), "").unwrap();
        store.sweep();
        assert!(store.entries().iter().all(|path| path.extension().is_none()), "{:?}", store.entries());
        std::fs::create_dir(store.directory.join("dead.making")).unwrap();
        assert!(usage.count == 3 && usage.reclaimable < usage.bytes, "{usage:?}");
        assert_eq!(store.prune().count, 2);
        assert!(store.find(&Key::test("used")).is_some() && store.find(&Key::test("unused")).is_none());
        drop(used);
        assert_eq!(store.prune().count, 1);
        assert_eq!(store.usage(), Usage::default());
    }

    #[test]
    fn a_discarded_template_is_gone_for_everybody() {
        let (_base, store) = store();
        let key = Key::test("k");
        let template = make(&store, &key);
        let second = store.find(&key).unwrap();
        store.discard(template);
        assert!(store.find(&key).is_none());
        drop(second);
    }
}
