//! Removes what dead containers left: processes and files. Every command of lighter does it first.

use std::path::Path;

use super::{ContainerError, Table, leftover};
use crate::dirs::Dirs;
use crate::lock::Lock;

/// Removes every container that nobody owns; gives their number. What cannot be removed stays for the next sweep.
pub fn sweep(dirs: &Dirs) -> Result<usize, ContainerError> {
    if !Table::run(dirs).exists() && !Table::data(dirs).exists() {
        return Ok(0);
    }
    let _table = Table::lock(dirs)?;
    let mut removed = 0;
    each(&Table::run(dirs), |path| {
        let Ok(Some(_lock)) = Lock::try_acquire(&path.join("lock")) else { return };
        leftover::kill(&path.join("vmm.pid"));
        if std::fs::remove_dir_all(path).is_ok() {
            removed += 1;
        }
    });
    each(&Table::data(dirs), |path| {
        let Ok(Some(_lock)) = Lock::try_acquire_dir(path) else { return };
        let _ = std::fs::remove_dir_all(path);
    });
    Ok(removed)
}

fn each(directory: &Path, mut visit: impl FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        visit(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::id::ContainerId;
    use crate::container::{Container, test_dirs};

    #[test]
    fn the_dead_are_removed_and_the_living_are_not() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        assert_eq!(sweep(&dirs).unwrap(), 0);
        let living = Container::create(&dirs, ContainerId::random(), None).unwrap();
        for directory in [Table::run(&dirs).join("dead"), Table::data(&dirs).join("dead")] {
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("file"), "left").unwrap();
        }
        std::fs::create_dir(Table::data(&dirs).join("without-a-run-directory")).unwrap();
        assert_eq!(sweep(&dirs).unwrap(), 1);
        assert!(living.vsock().parent().unwrap().exists() && living.disk().parent().unwrap().exists());
        assert_eq!(std::fs::read_dir(Table::run(&dirs)).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(Table::data(&dirs)).unwrap().count(), 1);
    }

    #[test]
    fn a_kept_disk_stays_until_the_sweep() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let mut container = Container::create(&dirs, ContainerId::random(), None).unwrap();
        std::fs::write(container.disk(), "data").unwrap();
        let disk = container.disk();
        container.keep_data();
        drop(container);
        assert!(disk.exists());
        sweep(&dirs).unwrap();
        assert!(!disk.exists());
    }
}
