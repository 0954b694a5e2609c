//! What is done to containers from outside, each verb in one call: for the command line and for the API.

use std::path::Path;
use std::time::{Duration, Instant};

use images::commit::CommitOptions;
use images::store::Removed;
use images::{Image, ImageSource, PullError, PullOptions, Reference, Silent, Store, StoreError};

use crate::HostMessage;
use crate::container::record::{self, FindError, Record};
use crate::container::spec::RestartPolicy;
use crate::container::state::Status;
use crate::container::{Container, ContainerError};
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::events::{Event, emit};
use crate::files::{FilesError, Guest};
use crate::isolation::{self, IsolationError};
use crate::keeper::client::{self, AskError};
use crate::keeper::protocol::{Reply, Request};
use crate::maintenance::Maintenance;
use crate::network::NetworkSpec;
use crate::network::spec::{ConnectError, Endpoint};
use crate::resources::ResourceSpec;
use crate::resources::live::{self, Shrunk, UpdateError};
use crate::rewire::{self, RewireError};
use crate::session::Outcome;
use crate::session::link::Link;
use crate::snapshot::{self, Place, Snapshot, SnapshotError, SnapshotStore, Taken};
use crate::volumes::VolumeStore;

/// How long a container may take to become free after its end.
const FREE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// No such container.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It has to run for this.
    #[error("container {name} is not running: it is {status}; `lighter start {name}` starts it")]
    NotRunning {
        /// Its name.
        name: String,
        /// What it is.
        status: &'static str,
    },
    /// It has to be stopped for this.
    #[error("container {name} is {status}: stop it first, or use `lighter rm -f`")]
    Running {
        /// Its name.
        name: String,
        /// What it is.
        status: &'static str,
    },
    /// It was to start and did not.
    #[error("container {name} was not started: {why}")]
    NotStarted {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// More CPUs than there are.
    #[error("container {name} has a machine of {has} CPUs, which stay as many: --cpus is at most {has}")]
    Cpus {
        /// Its name.
        name: String,
        /// Its CPUs.
        has: u8,
    },
    /// What its image's base was.
    #[error("the image {image} of container {name:?} is gone")]
    ImageGone {
        /// The image.
        image: String,
        /// The container.
        name: String,
        /// What the store says.
        source: StoreError,
    },
    /// Its description cannot be written.
    #[error("cannot write the container down")]
    Describe(#[source] std::io::Error),
    /// The networks of a machine that runs.
    #[error(transparent)]
    Rewire(#[from] RewireError),
    /// Another container is made of it.
    #[error("container {container} is made of {image}: remove it first, or use -f; it keeps its files then")]
    ImageInUse {
        /// The container.
        container: String,
        /// The image.
        image: String,
    },
    /// A copy cannot have its original's name.
    #[error("the copy needs a name of its own")]
    OwnName,
    /// Another network.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The keeper.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The start.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its place.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Its isolation.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// Its limits.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// Its files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// An image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image that is a directory.
    #[error(transparent)]
    Pull(#[from] PullError),
}

/// The container `name`, which must run.
pub fn running(dirs: &Dirs, name: &str) -> Result<Record, VerbError> {
    let record = record::find(dirs, name)?;
    match record.state.status.is_live() {
        true => Ok(record),
        false => Err(VerbError::NotRunning { status: record.state.status.name(), name: record.name }),
    }
}

/// Starts a container in the background; returns when its process runs. One that runs is left alone.
pub fn start(dirs: &Dirs, record: &Record, notice: &dyn Fn(&str)) -> Result<(), VerbError> {
    if record.state.status.is_live() {
        return Ok(());
    }
    let mut link = open_when_free(|| crate::run::start(dirs, record, &[]))?;
    wait_until_started(record, &mut link, notice)
}

/// Tries again for a moment while the last owner of the container is on its way out.
pub fn open_when_free<T>(mut open: impl FnMut() -> Result<T, RunError>) -> Result<T, RunError> {
    let end = Instant::now() + FREE_TIMEOUT;
    loop {
        match open() {
            Err(RunError::Container(ContainerError::Busy { .. })) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Waits until the process runs; its failure to start is ours.
pub fn wait_until_started(
    record: &Record,
    link: &mut Link<Request, Reply>,
    notice: &dyn Fn(&str),
) -> Result<(), VerbError> {
    let end = client::wait(record, link, None, |reply| match reply {
        Reply::Started => Some(None),
        Reply::Ended(outcome) => Some(Some(outcome)),
        Reply::Notice(text) => {
            notice(&text);
            None
        }
        _ => None,
    })?;
    match end {
        None | Some(Outcome::Exited(_)) => Ok(()),
        Some(outcome) => Err(VerbError::NotStarted {
            name: record.name.clone(),
            why: outcome
                .problem()
                .map_or_else(|| format!("exit code {}", outcome.exit_code()), str::to_owned),
        }),
    }
}

/// Asks a container to end and waits for that. One that does not run is left alone.
pub fn stop(
    dirs: &Dirs,
    record: &Record,
    signal: Option<i32>,
    timeout: Option<u64>,
) -> Result<(), VerbError> {
    if !record.state.status.is_live() {
        return Ok(());
    }
    match client::wait_for_end(record, Some(&Request::Stop { signal, timeout })) {
        // It ended meanwhile, which is what was wanted.
        Ok(_) | Err(AskError::NotRunning(_)) => {}
        Err(error) => return Err(error.into()),
    }
    emit(dirs, &Event::new("container", "stop", record.spec.id.as_str(), &record.name));
    Ok(())
}

/// Stops a container and starts it again.
pub fn restart(
    dirs: &Dirs,
    record: &Record,
    signal: Option<i32>,
    timeout: Option<u64>,
    notice: &dyn Fn(&str),
) -> Result<(), VerbError> {
    stop(dirs, record, signal, timeout)?;
    start(dirs, &record::find(dirs, record.spec.id.as_str())?, notice)
}

/// Sends a signal to the process of a container that runs.
pub fn kill(dirs: &Dirs, record: &Record, signal: i32) -> Result<(), VerbError> {
    client::tell(record, &Request::Process(HostMessage::Signal(signal)))?;
    let event = Event::new("container", "kill", record.spec.id.as_str(), &record.name);
    emit(dirs, &event.with("signal", signal));
    Ok(())
}

/// Removes a container that does not run, or that shall not.
pub fn remove(dirs: &Dirs, record: &Record, force: bool, volumes: bool) -> Result<(), VerbError> {
    let status = record.state.status;
    if status.is_live() {
        if !force {
            return Err(VerbError::Running { name: record.name.clone(), status: status.name() });
        }
        match client::wait_for_end(record, Some(&Request::Kill)) {
            Ok(_) | Err(AskError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // With --rm its keeper removes it at its end.
    if !(status.is_live() && record.spec.lifetime.remove) {
        let container = open_when_free(|| Ok(Container::open(dirs, &record.spec.id)?))?;
        container.remove();
        emit(dirs, &Event::new("container", "destroy", record.spec.id.as_str(), &record.name));
    }
    if volumes {
        VolumeStore::new(dirs).remove_anonymous(&record.spec.mounts);
    }
    Ok(())
}

/// Removes all containers that do not run; gives their IDs.
pub fn prune(dirs: &Dirs) -> Result<Vec<String>, VerbError> {
    let ended = |record: &Record| matches!(record.state.status, Status::Exited | Status::Created);
    let ended = record::list(dirs).into_iter().filter(ended);
    ended
        .map(|record| remove(dirs, &record, false, false).map(|()| record.spec.id.as_str().to_owned()))
        .collect()
}

/// Gives a container another name.
pub fn rename(dirs: &Dirs, record: &Record, name: &str) -> Result<(), VerbError> {
    crate::container::rename(dirs, &record.spec.id, name)?;
    let event = Event::new("container", "rename", record.spec.id.as_str(), name);
    emit(dirs, &event.with("oldName", &record.name));
    Ok(())
}

/// Other limits for a container.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Of its host.
    pub resources: ResourceSpec,
    /// `--cpus`, rounded up.
    pub vcpus: Option<u8>,
    /// `--memory`
    pub memory_mib: Option<u32>,
    /// `--restart`
    pub restart: Option<RestartPolicy>,
}

/// Changes the limits of a container, running or not; gives the MiB that it could not give back so far.
pub fn update(dirs: &Dirs, record: &Record, change: &Update) -> Result<Option<u32>, VerbError> {
    let has = record.spec.machine.vcpus;
    if change.vcpus.is_some_and(|wanted| wanted > has) {
        return Err(VerbError::Cpus { name: record.name.clone(), has });
    }
    let mut spec = record.spec.clone();
    spec.resources = spec.resources.updated(&change.resources);
    spec.lifetime.restart = change.restart.unwrap_or(spec.lifetime.restart);
    let mut missing = None;
    if record.is_running() {
        isolation::vm_only(&spec, &record.name, "changing the limits of what runs")?;
        spec.machine.next_memory_mib = change.memory_mib.or(spec.machine.next_memory_mib);
        let mut limits = spec.resources.clone();
        if let Some(Shrunk::Partly(mib)) =
            change.memory_mib.map(|mib| live::set_memory(record, mib)).transpose()?
        {
            // The host's limit would end the machine.
            limits.memory = record.spec.resources.memory;
            missing = Some(mib);
        }
        live::apply(record, &limits, &change.resources)?;
    } else {
        spec.machine.memory_mib = change.memory_mib.unwrap_or(spec.machine.memory_mib);
    }
    record::write_json(&record.data.join("spec.json"), &spec).map_err(VerbError::Describe)?;
    emit(dirs, &Event::new("container", "update", spec.id.as_str(), &record.name));
    Ok(missing)
}

/// Does something with the files of a container, running or not.
pub fn with_guest<T>(
    dirs: &Dirs,
    record: &Record,
    notice: &dyn Fn(&str),
    act: impl FnOnce(&Guest) -> Result<T, FilesError>,
) -> Result<T, VerbError> {
    if record.state.status.is_live() {
        return Ok(act(&Guest::of(record)?)?);
    }
    let maintenance = open_when_free(|| Maintenance::open(dirs, record, notice))?;
    let done = act(&Guest::behind(record, maintenance.vsock()));
    maintenance.close();
    Ok(done?)
}

/// Makes an image of what a container changed.
pub fn commit(
    dirs: &Dirs,
    record: &Record,
    name: Option<&Reference>,
    options: &CommitOptions,
    notice: &dyn Fn(&str),
) -> Result<Image, VerbError> {
    let store = Store::open(&dirs.data)?;
    let base = match record.spec.image.parse() {
        Ok(directory @ ImageSource::Dir(_)) => store.pull(&directory, &PullOptions::default(), &Silent)?,
        _ => store.image(&record.spec.image_id).map_err(|source| VerbError::ImageGone {
            image: record.spec.image.clone(),
            name: record.name.clone(),
            source,
        })?,
    };
    with_guest(dirs, record, notice, |guest| guest.commit(&store, &base, name, options))
}

/// Saves a running container under `name`, or its own name.
pub fn snapshot(dirs: &Dirs, record: &Record, name: Option<&str>) -> Result<(Snapshot, Taken), VerbError> {
    let name = name.unwrap_or(&record.name);
    let store = SnapshotStore::new(dirs);
    store.check_free(name)?;
    let draft = store.draft()?;
    let taken = snapshot::take(record, &draft)?;
    Ok((store.publish(draft, name)?, taken))
}

/// Goes on from the snapshot `name` in a new container.
pub fn restore(
    dirs: &Dirs,
    name: &str,
    container: Option<&str>,
    notice: &dyn Fn(&str),
) -> Result<Record, VerbError> {
    let found = SnapshotStore::new(dirs).find(name)?;
    start_copy(dirs, &found.directory, container, Place::OfOriginal, notice)
}

/// Branches a running container `number` times; `made` is told of each copy. Of several ones, the names are `NAME-1`,
/// `NAME-2` and so on.
pub fn clone(
    dirs: &Dirs,
    record: &Record,
    number: u32,
    name: Option<&str>,
    notice: &dyn Fn(&str),
    made: &mut dyn FnMut(&Record),
) -> Result<(), VerbError> {
    if name == Some(record.name.as_str()) {
        return Err(VerbError::OwnName);
    }
    let draft = SnapshotStore::new(dirs).draft()?;
    snapshot::take(record, &draft)?;
    for number_of_copy in 1..=number {
        let name = name.map(|name| match number {
            1 => name.to_owned(),
            _ => format!("{name}-{number_of_copy}"),
        });
        made(&start_copy(dirs, draft.directory(), name.as_deref(), Place::Beside, notice)?);
    }
    Ok(())
}

/// Starts a copy of the machine in `directory` and waits until its process runs on.
fn start_copy(
    dirs: &Dirs,
    directory: &Path,
    name: Option<&str>,
    place: Place,
    notice: &dyn Fn(&str),
) -> Result<Record, VerbError> {
    let container = snapshot::copy(dirs, directory, name, place)?;
    let id = container.id.clone();
    let mut link = crate::run::start_copy(dirs, container)?;
    let record = record::placeholder(dirs, &id)
        .map_err(|source| RunError::Host { action: "read what was just made", source })?;
    wait_until_started(&record, &mut link, notice)?;
    Ok(record)
}

/// Puts a container into a network: at once if it runs, else from its next start on.
pub fn connect_network(dirs: &Dirs, record: &Record, endpoint: &Endpoint) -> Result<(), VerbError> {
    let change = |spec: &mut NetworkSpec| spec.connect(endpoint.clone());
    change_network(dirs, record, ("connect", &endpoint.network), change, || rewire::connect(record, endpoint))
}

/// Takes a container out of a network: at once if it runs, else from its next start on.
pub fn disconnect_network(dirs: &Dirs, record: &Record, network: &str) -> Result<(), VerbError> {
    let change = |spec: &mut NetworkSpec| spec.disconnect(network);
    let rewire = || rewire::disconnect(dirs, record, network);
    change_network(dirs, record, ("disconnect", network), change, rewire)
}

fn change_network(
    dirs: &Dirs,
    record: &Record,
    (action, network): (&str, &str),
    change: impl FnOnce(&mut NetworkSpec) -> Result<(), ConnectError>,
    rewire: impl FnOnce() -> Result<(), RewireError>,
) -> Result<(), VerbError> {
    let (name, spec) = if record.state.status.is_live() {
        let mut spec = record.spec.clone();
        change(&mut spec.network)?;
        rewire()?;
        record::write_json(&record.data.join("spec.json"), &spec).map_err(VerbError::Describe)?;
        (record.name.clone(), spec)
    } else {
        // From here on nobody starts it.
        let owned = Container::open(dirs, &record.spec.id)?;
        let (name, mut spec, _) = record::load(&owned)?;
        change(&mut spec.network)?;
        owned.describe(&spec)?;
        (name, spec)
    };
    let event = Event::new("network", action, network, network);
    emit(dirs, &event.with("container", spec.id.as_str()).with("name", name));
    Ok(())
}

/// Removes an image and what only it needs; one that containers are made of only with `force`.
pub fn remove_image(dirs: &Dirs, store: &Store, name: &str, force: bool) -> Result<Removed, VerbError> {
    let image = store.image(name)?.name;
    match record::list(dirs).into_iter().find(|user| user.spec.image == image) {
        Some(user) if !force => Err(VerbError::ImageInUse { container: user.name, image }),
        _ => Ok(store.remove(name)?),
    }
}
