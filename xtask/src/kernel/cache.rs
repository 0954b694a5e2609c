//! Built kernels, by hash: `$XDG_CACHE_HOME/lighter/kernel/HASH/vmlinux`.
//!
//! A kernel appears by a rename, whole or not at all. Builders hold a lock; what a killed one left is
//! removed by the next. `current` links to the kernel asked for last, which `lighter run` takes.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::FlockOperation;

/// What a build leaves in its directory.
pub const PRODUCTS: [&str; 2] = ["vmlinux", "System.map"];
/// Where in the work directory it leaves them.
pub const OUT: &str = "out";
const CURRENT: &str = "current";

/// The place of one kernel.
pub struct Cache {
    root: PathBuf,
    hash: String,
}

/// Held while building; the kernel of the host drops it with the process.
pub struct Lock {
    _file: File,
}

impl Cache {
    /// The place of the kernel with this hash; makes the cache's directory.
    pub fn open(hash: String) -> anyhow::Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
            Some(path) if path.is_absolute() => path,
            _ => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        Self::at(base.join("lighter/kernel"), hash)
    }

    fn at(root: PathBuf, hash: String) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root, hash })
    }

    /// The kernel, where it is there; `current` then links to it.
    pub fn find(&self) -> anyhow::Result<Option<PathBuf>> {
        let directory = self.root.join(&self.hash);
        if !PRODUCTS.iter().all(|product| directory.join(product).is_file()) {
            return Ok(None);
        }
        self.make_current()?;
        Ok(Some(directory.join(PRODUCTS[0])))
    }

    /// Waits until no other process builds.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.root.join(".lock");
        let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("==> another process builds the guest kernel: waiting for it");
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(Lock { _file: file })
    }

    /// An empty directory to build in; what an earlier build left is removed. The caller holds the lock.
    pub fn fresh_work_dir(&self) -> anyhow::Result<PathBuf> {
        let work = self.root.join(".work");
        remove(&work)?;
        std::fs::create_dir(&work).with_context(|| format!("cannot make {}", work.display()))?;
        Ok(work)
    }

    /// Where the compiler's output goes.
    pub fn log(&self) -> PathBuf {
        self.root.join("build.log")
    }

    /// Moves what was built in `work` to its place. The caller holds the lock.
    pub fn store(&self, work: &Path) -> anyhow::Result<PathBuf> {
        let directory = self.root.join(&self.hash);
        // Incomplete, or `find` had found it.
        remove(&directory)?;
        let out = work.join(OUT);
        for product in PRODUCTS {
            File::open(out.join(product))
                .and_then(|file| file.sync_all())
                .with_context(|| format!("the build left no {product}"))?;
        }
        std::fs::rename(&out, &directory)
            .with_context(|| format!("cannot move the kernel to {}", directory.display()))?;
        self.make_current()?;
        Ok(directory.join(PRODUCTS[0]))
    }

    /// Points `current` here in one step.
    fn make_current(&self) -> anyhow::Result<()> {
        let link = self.root.join(CURRENT);
        if std::fs::read_link(&link).is_ok_and(|target| target == Path::new(&self.hash)) {
            return Ok(());
        }
        let aside = self.root.join(format!(".{CURRENT}.{}", std::process::id()));
        remove(&aside)?;
        std::os::unix::fs::symlink(&self.hash, &aside)
            .and_then(|()| std::fs::rename(&aside, &link))
            .with_context(|| format!("cannot make the link {}", link.display()))
    }
}

/// Removes whatever is at `path`, if anything is.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    let result = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    result.with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(work: &Path) {
        std::fs::create_dir(work.join(OUT)).unwrap();
        for product in PRODUCTS {
            std::fs::write(work.join(OUT).join(product), product).unwrap();
        }
    }

    #[test]
    fn a_kernel_is_found_only_once_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().join("kernel"), "abc".into()).unwrap();
        assert_eq!(cache.find().unwrap(), None);
        let work = cache.fresh_work_dir().unwrap();
        std::fs::create_dir(work.join(OUT)).unwrap();
        std::fs::write(work.join(OUT).join("vmlinux"), "half").unwrap();
        assert!(cache.store(&work).is_err());
        assert_eq!(cache.find().unwrap(), None);

        let work = cache.fresh_work_dir().unwrap();
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
        fill(&work);
        let path = cache.store(&work).unwrap();
        assert_eq!(cache.find().unwrap(), Some(path));
    }

    #[test]
    fn current_follows_the_kernel_asked_for_last() {
        let root = tempfile::tempdir().unwrap();
        for hash in ["one", "two"] {
            let cache = Cache::at(root.path().to_owned(), hash.into()).unwrap();
            let work = cache.fresh_work_dir().unwrap();
            fill(&work);
            cache.store(&work).unwrap();
        }
        let current = root.path().join("current");
        assert_eq!(std::fs::read_link(&current).unwrap(), Path::new("two"));
        Cache::at(root.path().to_owned(), "one".into()).unwrap().find().unwrap();
        assert_eq!(std::fs::read_link(&current).unwrap(), Path::new("one"));
    }

    #[test]
    fn one_process_builds_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().to_owned(), "abc".into()).unwrap();
        let lock = cache.lock().unwrap();
        let other = File::open(root.path().join(".lock")).unwrap();
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(lock);
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
