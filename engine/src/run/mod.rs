//! `lighter run` and `create`: from the image's name to a container, and to its keeper.

pub mod machine;
pub mod warm;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::Path;

use images::pull::PullOptions;
use images::{ImageSource, Progress, Store};
use rustix::fs::{Access, access};

use crate::container::Container;
use crate::container::health::HealthOptions;
use crate::container::id::ContainerId;
use crate::container::record::Record;
use crate::container::spec::{ContainerSpec, Lifetime, MachineSpec, SCHEMA};
use crate::container::state::{State, now_ns};
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::events::{Event, emit};
use crate::intake;
use crate::isolation::{self, Isolation};
use crate::keeper::protocol::{Reply, Request};
use crate::keeper::spawn;
use crate::log::LogSpec;
use crate::network::{NetworkSpec, port};
use crate::plan::{Plan, PlanOptions};
use crate::resources::ResourceSpec;
use crate::session::Outcome;
use crate::session::link::Link;
use crate::session::signals::Signals;
use crate::template::MakeError;
use crate::trace::Trace;
use crate::volumes::{self, MountSpec, VolumeStore};
use machine::Machine;
use warm::{Level, Warmer};

/// Everything that `lighter run` or `create` was told.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The image.
    pub image: ImageSource,
    /// When and how to fetch it.
    pub pull: PullOptions,
    /// What runs.
    pub plan: PlanOptions,
    /// `--name`
    pub name: Option<String>,
    /// What keeps it apart from its host.
    pub isolation: Isolation,
    /// In which machine.
    pub machine: MachineSpec,
    /// `--network`
    pub network: NetworkSpec,
    /// What it may take of its host.
    pub resources: ResourceSpec,
    /// `-v`, `--mount`, `--tmpfs`
    pub mounts: Vec<MountSpec>,
    /// Begin and end.
    pub lifetime: Lifetime,
    /// `--health-cmd` and its companions.
    pub health: HealthOptions,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--log-opt`
    pub log: LogSpec,
}

/// Who watches a run.
pub struct Watcher<'a> {
    /// Told of the pull and the building of the root filesystem.
    pub progress: &'a dyn Progress,
    /// Told once before the guest's own output may come.
    pub ready: &'a dyn Fn(),
    /// Shown to the user, one line.
    pub notice: &'a dyn Fn(&str),
}

/// A container that was made and that nobody else sees yet: it is gone when this is dropped.
pub struct Made {
    container: Container,
    spec: ContainerSpec,
}

/// Makes a container; also the image's template, if this start is to clone it.
///
/// The signals are read from the moment on at which there is something to clean up. The inner error is an interruption.
pub fn make(
    dirs: &Dirs,
    options: &RunOptions,
    watcher: &Watcher<'_>,
    trace: &mut Trace,
) -> Result<Result<(Made, Signals), Outcome>, RunError> {
    check_host(options.isolation)?;
    let mut network = isolation::network(options.isolation, options.network.clone())?;
    let store = Store::open(&dirs.data)?;
    trace.end("resolve");
    let image = intake::pull(&store, &options.image, &options.pull, watcher.progress)?;
    trace.end("pull");
    let id = ContainerId::random();
    let plan = Plan::new(&options.plan, &image.name, &image.process(), id.as_str())?;
    let rootfs = intake::ensure_rootfs(&store, &image, watcher.progress)?;
    trace.end("rootfs");
    (watcher.ready)();
    // From here on there is something to clean up, so signals are read where that is done.
    let signals = Signals::block().map_err(|source| RunError::Host { action: "watch signals", source })?;
    network.resolve().into_iter().for_each(|notice| (watcher.notice)(&notice));
    network.exposed = port::exposed(&image.process());
    let container = Container::reserve(dirs, id.clone(), options.name.as_deref())?;
    let name = rootfs.file_name().unwrap_or_default();
    // A link of the container's own: the image may be removed while the container is there.
    std::fs::hard_link(&rootfs, container.data().join(name))
        .map_err(|source| RunError::Host { action: "link the root filesystem into the container", source })?;
    let spec = ContainerSpec {
        schema: SCHEMA.to_owned(),
        id,
        created_ns: now_ns(),
        image: image.name.clone(),
        image_id: image.config_digest.to_string(),
        rootfs: name.to_string_lossy().into_owned(),
        plan,
        isolation: options.isolation,
        machine: options.machine.clone(),
        network,
        resources: options.resources.clone(),
        mounts: volumes::resolve(options.mounts.clone(), &volumes::of_image(&image.process()))?,
        lifetime: options.lifetime.clone(),
        health: options.health.spec(image.healthcheck.as_ref()),
        labels: options.labels.clone(),
        log: options.log,
    };
    container.describe(&spec)?;
    VolumeStore::new(dirs).ensure(&spec.mounts, false)?;
    let made = Made { container, spec };
    Ok(match made.warm_up(dirs, &signals, watcher.notice, trace)? {
        Some(outcome) => Err(outcome),
        None => Ok((made, signals)),
    })
}

impl Made {
    /// Its ID.
    pub fn id(&self) -> &ContainerId {
        &self.spec.id
    }

    /// What it is.
    pub fn spec(&self) -> &ContainerSpec {
        &self.spec
    }

    /// Makes the template here, where the user sees progress and may interrupt it.
    fn warm_up(
        &self,
        dirs: &Dirs,
        signals: &Signals,
        notice: &dyn Fn(&str),
        trace: &mut Trace,
    ) -> Result<Option<Outcome>, RunError> {
        if self.spec.machine.cold || self.spec.isolation != Isolation::Vm {
            return Ok(None);
        }
        let machine = Machine::of(&self.spec, dirs, self.container.data())?;
        let warmer = Warmer { dirs, machine: &machine, plan: &self.spec.plan, signals, notice };
        match warmer.template(Level::Image) {
            Ok(None) => Ok(None),
            Ok(Some(_)) => {
                trace.end("template");
                Ok(None)
            }
            Err(MakeError::Interrupted { signal }) => Ok(Some(Outcome::Interrupted { signal })),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets it stay without a start: `lighter create`.
    pub fn keep(mut self, dirs: &Dirs) -> Result<(), RunError> {
        self.container.keep(&self.spec, &State::default())?;
        self.event(dirs, "create");
        Ok(())
    }

    /// Starts it: gives the connection to its keeper, to which `first` was said.
    pub fn start(self, dirs: &Dirs, first: &[Request]) -> Result<Link<Request, Reply>, RunError> {
        self.event(dirs, "create");
        start_in(dirs, self.container, first)
    }

    fn event(&self, dirs: &Dirs, action: &str) {
        let record = crate::container::record::load(&self.container);
        let name = record.map(|(name, _, _)| name).unwrap_or_default();
        let event = Event::new("container", action, self.spec.id.as_str(), &name);
        emit(dirs, &event.with("image", &self.spec.image));
    }
}

/// Starts a container that was made before.
pub fn start(dirs: &Dirs, record: &Record, first: &[Request]) -> Result<Link<Request, Reply>, RunError> {
    check_host(record.spec.isolation)?;
    start_in(dirs, Container::open(dirs, &record.spec.id)?, first)
}

/// Starts a container that [`crate::snapshot::copy`] made.
pub fn start_copy(dirs: &Dirs, copy: Container) -> Result<Link<Request, Reply>, RunError> {
    check_kvm(Path::new("/dev/kvm"))?;
    start_in(dirs, copy, &[])
}

fn start_in(dirs: &Dirs, container: Container, first: &[Request]) -> Result<Link<Request, Reply>, RunError> {
    let host = |action| move |source| RunError::Host { action, source };
    let (ours, theirs) = UnixStream::pair().map_err(host("make a connection to the container's keeper"))?;
    let mut link = Link::new(ours).map_err(host("make a connection to the container's keeper"))?;
    for request in first {
        link.send(request)
            .map_err(|source| crate::session::SessionError::Link { source, console: String::new() })?;
    }
    spawn::spawn(dirs, container, Some(theirs)).map_err(host("start the container's keeper"))?;
    Ok(link)
}

fn check_host(isolation: Isolation) -> Result<(), RunError> {
    match isolation {
        Isolation::Vm => check_kvm(Path::new("/dev/kvm")),
        other => Ok(isolation::check_host(other)?),
    }
}

/// Asked before anything is made or fetched, because without it nothing of that is of use.
fn check_kvm(path: &Path) -> Result<(), RunError> {
    access(path, Access::READ_OK | Access::WRITE_OK)
        .map_err(|error| RunError::Kvm { path: path.to_owned(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kvm_is_named_with_the_fix() {
        let error = check_kvm(Path::new("/dev/no-kvm")).unwrap_err().to_string();
        assert!(error.contains("/dev/no-kvm") && error.contains("lighter doctor"), "{error}");
    }
}
