//! Which guest kernel boots.
//!
//! `--kernel`, else `LIGHTER_KERNEL`, else `kernel/current/vmlinux` in the cache, else the newest one there.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::dirs::Dirs;

/// Where a bzImage has its magic number, and where the look at a file ends.
const BZIMAGE_MAGIC: std::ops::Range<usize> = 0x202..0x206;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing was named and nothing was built.
    #[error(
        "no guest kernel in {}: build it with `cargo xtask kernel`, or name one with --kernel PATH or LIGHTER_KERNEL",
        path.display()
    )]
    Missing {
        /// The cache.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot open the {what} {}", path.display())]
    Open {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{} is not a kernel: neither an ELF vmlinux nor a bzImage; docs/kernel.md says what boots",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
    },
}

/// The kernel to boot, known to be there and to look like one.
pub fn find(option: Option<&Path>, dirs: &Dirs) -> Result<PathBuf, KernelError> {
    let variable = std::env::var_os("LIGHTER_KERNEL").filter(|value| !value.is_empty());
    let named = option.map(Path::to_owned).or_else(|| variable.map(PathBuf::from));
    let path = match named {
        Some(path) => std::path::absolute(&path).unwrap_or(path),
        None => cached(&dirs.cache.join("kernel"))?,
    };
    check(&path)?;
    Ok(path)
}

/// The initial RAM disk, known to be readable.
pub fn find_initrd(path: &Path) -> Result<PathBuf, KernelError> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    open("initrd", &path)?;
    Ok(path)
}

fn cached(directory: &Path) -> Result<PathBuf, KernelError> {
    let current = directory.join("current/vmlinux");
    if current.is_file() {
        return Ok(current);
    }
    let modified =
        |path: &PathBuf| path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("vmlinux")))
        .filter(|path| path.is_file())
        .max_by_key(modified)
        .ok_or_else(|| KernelError::Missing { path: directory.to_owned() })
}

fn check(path: &Path) -> Result<(), KernelError> {
    let mut head = Vec::new();
    open("kernel", path)?
        .take(BZIMAGE_MAGIC.end as u64)
        .read_to_end(&mut head)
        .map_err(|source| KernelError::Open { what: "kernel", path: path.to_owned(), source })?;
    let known = head.starts_with(b"\x7fELF") || head.get(BZIMAGE_MAGIC) == Some(b"HdrS");
    if known { Ok(()) } else { Err(KernelError::Format { path: path.to_owned() }) }
}

fn open(what: &'static str, path: &Path) -> Result<File, KernelError> {
    let failed = |source| KernelError::Open { what, path: path.to_owned(), source };
    // Before it is opened, which would wait where the file is a pipe.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    File::open(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"\x7fELF and more").unwrap();
    }

    #[test]
    fn the_current_one_goes_before_the_newest() {
        let cache = tempfile::tempdir().unwrap();
        assert!(matches!(cached(cache.path()), Err(KernelError::Missing { .. })));
        kernel(&cache.path().join("old/vmlinux"));
        let past = SystemTime::now() - std::time::Duration::from_secs(3600);
        File::options()
            .append(true)
            .open(cache.path().join("old/vmlinux"))
            .unwrap()
            .set_modified(past)
            .unwrap();
        kernel(&cache.path().join("new/vmlinux"));
        std::fs::create_dir(cache.path().join("unfinished")).unwrap();
        assert_eq!(cached(cache.path()).unwrap(), cache.path().join("new/vmlinux"));
        std::os::unix::fs::symlink("old", cache.path().join("current")).unwrap();
        assert_eq!(cached(cache.path()).unwrap(), cache.path().join("current/vmlinux"));
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        std::fs::write(&path, "root:x:0:0").unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(
            error.contains("passwd") && error.contains("vmlinux") && error.contains("bzImage"),
            "{error}"
        );
        let error = check(Path::new("/no/such/vmlinux")).unwrap_err().to_string();
        assert!(error.contains("/no/such/vmlinux"), "{error}");
        let mut image = vec![0; 0x300];
        image[BZIMAGE_MAGIC].copy_from_slice(b"HdrS");
        std::fs::write(&path, image).unwrap();
        check(&path).unwrap();
    }
}
