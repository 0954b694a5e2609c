//! Files that appear whole or not at all, built once even if several processes want them at the same time.
//!
//! The builder holds an exclusive flock on `NAME.partial`. Who waited for the lock finds that the path leads
//! elsewhere by then (the file was renamed or removed) and starts over.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::RootfsError;

const PARTIAL: &str = "partial";

/// Makes sure that `path` exists: `build` gets the empty file and its path. What an error leaves is removed.
pub(super) fn build_once(
    path: &Path,
    build: impl FnOnce(&mut File, &Path) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    if exists(path)? {
        return Ok(());
    }
    let (mut file, partial) = lock_partial(path)?;
    if exists(path)? {
        return remove(&partial);
    }
    complete(&mut file, &partial, |file, partial| {
        build(file, partial)?;
        Ok(path.to_owned())
    })
    .map(|_| ())
}

/// As [`build_once`] for a file whose name follows from its content: `build` returns it. `path` names it meanwhile.
pub(super) fn build_then_name(
    path: &Path,
    build: impl FnOnce(&mut File, &Path) -> Result<PathBuf, RootfsError>,
) -> Result<PathBuf, RootfsError> {
    let (mut file, partial) = lock_partial(path)?;
    complete(&mut file, &partial, build)
}

/// Removes the partial files of builders that are gone. Whatever cannot be removed is left for the next time.
pub(super) fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == PARTIAL)
            && let Ok(file) = open(&path, false)
            && file.try_lock().is_ok()
            && is_at(&file, &path).unwrap_or(false)
        {
            // A failure here is met again, and reported, by whoever builds this file.
            let _ = fs::remove_file(&path);
        }
    }
}

/// The partial file of `path`, empty and locked.
fn lock_partial(path: &Path) -> Result<(File, PathBuf), RootfsError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".");
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    let failed = |action, source: io::Error| RootfsError::file(action, &partial, source);
    loop {
        let file = open(&partial, true).map_err(|source| failed("create", source))?;
        file.lock().map_err(|source| failed("lock", source))?;
        if is_at(&file, &partial).map_err(|source| failed("look at", source))? {
            file.set_len(0).map_err(|source| failed("empty", source))?;
            return Ok((file, partial));
        }
    }
}

fn complete(
    file: &mut File,
    partial: &Path,
    build: impl FnOnce(&mut File, &Path) -> Result<PathBuf, RootfsError>,
) -> Result<PathBuf, RootfsError> {
    let finish = |file: &mut File| {
        let path = build(file, partial)?;
        if exists(&path)? {
            // Its name follows from its content, so it is the same file.
            remove(partial)?;
            return Ok(path);
        }
        file.sync_all().map_err(|source| RootfsError::file("write to disk", partial, source))?;
        fs::rename(partial, &path).map_err(|source| RootfsError::file("rename", partial, source))?;
        Ok(path)
    };
    finish(file).inspect_err(|_| {
        // The error being returned matters more; a later sweep tries again.
        let _ = remove(partial);
    })
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn exists(path: &Path) -> Result<bool, RootfsError> {
    path.try_exists().map_err(|source| RootfsError::file("look at", path, source))
}

fn remove(path: &Path) -> Result<(), RootfsError> {
    fs::remove_file(path).map_err(|source| RootfsError::file("remove", path, source))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn many_at_once_build_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.erofs");
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    build_once(&path, |file, _| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        file.write_all(b"whole").expect("room");
                        Ok(())
                    })
                    .expect("built");
                    assert_eq!(fs::read(&path).expect("published"), b"whole");
                });
            }
        });
        assert_eq!(builds.load(Ordering::Relaxed), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.erofs");
        let result = build_once(&path, |_, at| Err(RootfsError::file("do", at, io::ErrorKind::Other)));
        assert!(result.is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_sweep_takes_only_what_nobody_builds() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (_held, held) = lock_partial(&dir.path().join("held.erofs")).expect("locked");
        fs::write(dir.path().join("crashed.erofs.partial"), b"half").expect("room");
        fs::write(dir.path().join("whole.erofs"), b"whole").expect("room");
        sweep(dir.path());
        assert!(held.exists());
        assert!(dir.path().join("whole.erofs").exists());
        assert!(!dir.path().join("crashed.erofs.partial").exists());
    }

    #[test]
    fn a_crashed_builds_rest_is_not_part_of_the_next() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.erofs");
        fs::write(dir.path().join("a.erofs.partial"), b"long rest of a crash").expect("room");
        build_once(&path, |file, _| file.write_all(b"new").map_err(|e| RootfsError::file("x", &path, e)))
            .expect("built");
        assert_eq!(fs::read(&path).expect("published"), b"new");
    }
}
