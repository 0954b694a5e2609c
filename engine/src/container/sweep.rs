//! Finds containers whose owner died and ends what it began. Every command of lighter does it first.

use std::path::Path;

use super::state::{State, now_ns};
use super::{ContainerError, Table, leftover, record};
use crate::dirs::Dirs;
use crate::lock::Lock;
use crate::resources::cgroup;

/// What a container ends with whose keeper was killed.
const LOST: u8 = 137;

/// Ends the machines of dead keepers and removes what was never kept, or only for the time of its run; gives the number
/// of what was found. What cannot be done now stays for the next sweep.
pub fn sweep(dirs: &Dirs) -> Result<usize, ContainerError> {
    if !Table::run(dirs).exists() && !Table::data(dirs).exists() {
        return Ok(0);
    }
    let _table = Table::lock(dirs)?;
    let mut found = 0;
    each(&Table::run(dirs), |path| {
        let Ok(Some(_lock)) = Lock::try_acquire(&path.join("lock")) else { return };
        leftover::kill(&path.join("vmm.pid"));
        if let Some(id) = path.file_name().and_then(|id| id.to_str()) {
            // Of a warden, which may have left processes too, then of a VMM.
            warden::cgroup::sweep(id);
            cgroup::sweep(id);
        }
        if std::fs::remove_dir_all(path).is_ok() {
            found += 1;
        }
    });
    each(&Table::data(dirs), |path| {
        // Of most, this small file tells that there is nothing to do.
        if record::read_state(path).is_ok_and(|state| !state.status.is_live()) {
            return;
        }
        let record = path.file_name().and_then(|id| record::read(dirs, id.to_str()?).ok());
        if record.as_ref().is_some_and(|record| !record.state.status.is_live()) {
            return;
        }
        let Ok(Some(_lock)) = Lock::try_acquire_dir(path) else { return };
        match record {
            Some(record) if !record.spec.lifetime.remove => {
                let _ = record::rewrite_json(&path.join("state.json"), &lost(record.state));
            }
            // Damaged files are somebody's data all the same.
            None if path.join("state.json").exists() => {}
            _ => drop(std::fs::remove_dir_all(path)),
        }
    });
    Ok(found)
}

/// The state of a container whose keeper did not live to see its end.
fn lost(state: State) -> State {
    State {
        status: super::state::Status::Exited,
        exit_code: Some(LOST),
        error: Some("its keeper was killed, and its machine ended with it".to_owned()),
        finished_ns: Some(now_ns()),
        keeper: None,
        vmm: None,
        health: None,
        address: None,
        ..state
    }
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
    use crate::container::state::Status;
    use crate::container::{Container, spec, test_dirs};

    #[test]
    fn the_dead_are_removed_and_the_living_are_not() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        assert_eq!(sweep(&dirs).unwrap(), 0);
        let living = Container::nameless(&dirs).unwrap();
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
    fn a_container_whose_keeper_died_has_ended_and_says_why() {
        let base = tempfile::tempdir().unwrap();
        let dirs = test_dirs(base.path());
        let make = |remove: bool| {
            let mut container = Container::reserve(&dirs, ContainerId::random(), None).unwrap();
            let mut spec = spec::tests::example(&container.id);
            spec.lifetime.remove = remove;
            container.keep(&spec, &State { status: Status::Running, ..State::default() }).unwrap();
            std::fs::write(container.disk(), "data").unwrap();
            (container.disk(), container)
        };
        let ((kept, container), (gone, temporary)) = (make(false), make(true));
        sweep(&dirs).unwrap();
        assert_eq!(record::list(&dirs)[0].state.status, Status::Running, "the sweep took a living container");
        drop((container, temporary));
        sweep(&dirs).unwrap();
        let [record] = &record::list(&dirs)[..] else { panic!("not one container is left") };
        assert_eq!((record.state.status, record.state.exit_code), (Status::Exited, Some(137)));
        assert!(record.state.error.as_ref().unwrap().contains("killed"));
        assert!(kept.exists() && !gone.exists());
    }
}
