//! The disk under the images and containers.

use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::{Check, Status};

/// Less free space than this is said: a common image with its root filesystem takes about as much.
const LOW_BYTES: u64 = 1 << 30;

/// `disk` and `reflink`, for the file system of the directory `data`, which need not exist yet.
pub fn checks(data: &Path) -> Vec<Check> {
    let existing = data.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned();
    vec![disk(&existing), reflink(&existing)]
}

fn disk(path: &PathBuf) -> Check {
    let meaning = "images and containers are kept there";
    let free = match statvfs(path) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            let finding = format!("cannot look at {}: {error}", path.display());
            return Check::bad(
                "disk",
                Status::Warn,
                finding,
                meaning,
                "choose another directory with --root",
            );
        }
    };
    let finding = format!("{:.1} GiB free at {}", free as f64 / (1u64 << 30) as f64, path.display());
    if free >= LOW_BYTES {
        return Check::ok("disk", finding, meaning);
    }
    let fix = "free some space (`lighter system prune`), or choose another directory with --root";
    Check::bad("disk", Status::Warn, finding, "an image may not fit", fix)
}

fn reflink(path: &Path) -> Check {
    match clone_works(path) {
        Ok(true) => Check::ok("reflink", "files can share blocks", "copies of disks are made at once"),
        Ok(false) => Check::bad(
            "reflink",
            Status::Warn,
            "this file system cannot share blocks between files",
            "copies of disks take time and space; containers run as well without",
            "keep the data on XFS or Btrfs, with --root",
        ),
        Err(error) => Check::bad(
            "reflink",
            Status::Warn,
            format!("cannot write at {}: {error}", path.display()),
            "whether files can share blocks is not known",
            "run the doctor as the user who runs containers, or choose another directory with --root",
        ),
    }
}

fn clone_works(path: &Path) -> std::io::Result<bool> {
    let source = tempfile::tempfile_in(path)?;
    let target = tempfile::tempfile_in(path)?;
    rustix::fs::ftruncate(&source, 4096)?;
    Ok(rustix::fs::ioctl_ficlone(&target, &source).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let base = tempfile::tempdir().unwrap();
        let checks = checks(&base.path().join("not/yet"));
        assert!(checks[0].finding.contains(&base.path().display().to_string()));
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
