//! A new container that goes on where another one was saved.

use std::path::Path;

use super::{DISK, MACHINE, MACHINE_FILES, Manifest, ROOTFS, Resumption, SnapshotError, file, link};
use crate::container::Container;
use crate::container::id::ContainerId;
use crate::container::state::now_ns;
use crate::dirs::Dirs;
use crate::events::{Event, emit};
use crate::run::machine::AGENT_DISK;
use crate::template::copy_sparse;

/// Whose place a copy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The original's, which is gone: it gets the ports and addresses that the original was given.
    OfOriginal,
    /// One of its own beside the original.
    Beside,
}

/// Makes a container of the snapshot in `directory`, for [`crate::run::start_copy`] to start. Without `name` one is
/// invented.
pub fn copy(
    dirs: &Dirs,
    directory: &Path,
    name: Option<&str>,
    place: Place,
) -> Result<Container, SnapshotError> {
    let mut spec = Manifest::read(directory)?.spec;
    let id = ContainerId::random();
    let container = Container::reserve(dirs, id.clone(), name)?;
    let data = container.data();
    // The name comes from the snapshot, which may come from anybody.
    let rootfs = Path::new(&spec.rootfs).file_name().filter(|name| *name == spec.rootfs.as_str());
    let rootfs = rootfs.ok_or_else(|| SnapshotError::Manifest {
        path: directory.to_owned(),
        why: format!("{:?} is no file name", spec.rootfs),
    })?;
    link(&directory.join(ROOTFS), &data.join(rootfs))?;
    link(&directory.join(AGENT_DISK), &data.join(AGENT_DISK))?;
    let machine = Resumption::place(data).join(MACHINE);
    std::fs::create_dir_all(&machine).map_err(file("make", &machine))?;
    for name in MACHINE_FILES {
        link(&directory.join(MACHINE).join(name), &machine.join(name))?;
    }
    let disk = directory.join(DISK);
    if disk.exists() {
        copy_sparse(&disk, &container.disk()).map_err(file("copy", &disk))?;
    }
    spec.plan.rename_host(spec.id.as_str(), id.as_str());
    (spec.id, spec.created_ns) = (id, now_ns());
    if place == Place::Beside {
        spec.network = spec.network.beside();
    }
    container.describe(&spec)?;
    let name = std::fs::read_to_string(data.join("name")).unwrap_or_default();
    let event = Event::new("container", "create", spec.id.as_str(), &name);
    emit(dirs, &event.with("image", &spec.image));
    Ok(container)
}
