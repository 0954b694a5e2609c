//! `lighter run`, from the image's name to the end of its process.

mod machine;
mod warm;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use agent_protocol::HOST_PORT;
use images::pull::PullOptions;
use images::{Image, ImageSource, Progress, Store, rootfs};
use rustix::fs::{Access, access};
use vmm::config::{KernelConfig, VmConfig};

use crate::container::Container;
use crate::container::id::ContainerId;
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::network::{Attachment, Network, NetworkError, permission};
use crate::plan::{Plan, PlanOptions, resources};
use crate::process::VmProcess;
use crate::session::signals::Signals;
use crate::session::{Agent, Outcome, Session, SessionError, Setup, Streams};
use crate::template::{MakeError, TemplateStore};
use crate::trace::Trace;
use crate::{carried, kernel};
use machine::Machine;

/// The kernel's root is the agent's disk.
const ROOT_ARGUMENTS: &str = "root=/dev/vda ro rootfstype=erofs init=/init";

/// `--network`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkChoice {
    /// A bridge where this process may make one, else nothing.
    #[default]
    Auto,
    /// A bridge with NAT.
    Bridge,
    /// Loopback only.
    None,
}

/// Everything that `lighter run` was told.
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
    /// `--rm`: leave nothing, not even for whoever wants to look at a machine that was lost.
    pub remove: bool,
    /// `--memory`: what the container gets.
    pub memory_mib: u32,
    /// `--cpus`
    pub vcpus: u8,
    /// `--kernel`
    pub kernel: Option<PathBuf>,
    /// `--initrd`
    pub initrd: Option<PathBuf>,
    /// `--kernel-arg`
    pub kernel_args: Vec<String>,
    /// `--network`
    pub network: NetworkChoice,
    /// `--cold`: boot, neither use nor make a template.
    pub cold: bool,
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

/// Runs a container to its end. The calling thread must be the one that lives longest: the VM dies with it.
pub fn run(
    dirs: &Dirs,
    options: &RunOptions,
    streams: Streams<'_>,
    watcher: &Watcher<'_>,
    trace: &mut Trace,
) -> Result<Outcome, RunError> {
    check_kvm(Path::new("/dev/kvm"))?;
    let kernel = KernelConfig {
        path: kernel::find(options.kernel.as_deref(), dirs)?,
        initrd: options.initrd.as_deref().map(kernel::find_initrd).transpose()?,
        cmdline: std::iter::once(ROOT_ARGUMENTS)
            .chain(options.kernel_args.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" "),
    };
    let store = Store::open(&dirs.data)?;
    trace.end("resolve");
    let image = store.pull(&options.image, &options.pull, watcher.progress)?;
    trace.end("pull");
    let id = ContainerId::random();
    let plan = Plan::new(&options.plan, &image.name, &image.process(), id.as_str())?;
    let rootfs = rootfs::ensure_rootfs(&store, &image, watcher.progress)?;
    trace.end("rootfs");
    (watcher.ready)();

    // From here on there is something to clean up, so signals are read where that is done.
    let signals = Signals::block().map_err(|source| RunError::Host { action: "watch signals", source })?;
    let network = wants_network(options.network, watcher.notice)?;
    let machine = Machine {
        program: carried::vmm(dirs)?,
        agent: carried::agent_disk(dirs)?,
        kernel,
        rootfs,
        vcpus: options.vcpus,
        mem_size_mib: resources::vm_memory_mib(options.memory_mib),
        network,
    };
    let template = match warm::template(dirs, options.cold, &machine, &plan, &signals, watcher.notice) {
        Ok(template) => template,
        Err(MakeError::Interrupted { signal }) => return Ok(Outcome::Interrupted { signal }),
        Err(error) => return Err(error.into()),
    };
    if template.is_some() {
        trace.end("template");
    }
    let mut container = Container::create(dirs, id, options.name.as_deref())?;
    machine.make_layer(&container, &plan, template.as_ref())?;
    trace.end("disks");
    let attachment = match network {
        true => Some(Network::here(dirs)?.attach(&container.id, &options.plan.dns)?),
        false => None,
    };
    trace.end("network");
    let config = machine.config(&container, &plan, attachment.as_ref(), template.as_ref());
    let start = Start { machine: &machine, container: &container, config: &config, plan: &plan };
    let result = start.supervise(attachment.as_ref(), image, &signals, streams, trace);
    if let (Err(RunError::Session(SessionError::Vm(why))), Some(template)) = (&result, template) {
        // The VMM refused it before anything ran, and would refuse it the next time too. Without a template there
        // is no second turn.
        (watcher.notice)(&format!("the image's template could not be used, so another one is made: {why}"));
        TemplateStore::new(dirs).discard(template);
        drop((container, attachment, signals));
        return run(dirs, options, streams, watcher, trace);
    }
    if matches!(result, Err(RunError::Session(SessionError::Lost(_)))) && !options.remove {
        container.keep_data();
        (watcher.notice)(&format!(
            "the disk of the lost container stays at {} until lighter is used again",
            container.disk().display()
        ));
    }
    result
}

/// A container that is about to start.
struct Start<'a> {
    machine: &'a Machine,
    container: &'a Container,
    config: &'a VmConfig,
    plan: &'a Plan,
}

impl Start<'_> {
    /// Starts the machine and stays with it to its end.
    fn supervise(
        &self,
        attachment: Option<&Attachment>,
        image: Image,
        signals: &Signals,
        streams: Streams<'_>,
        trace: &mut Trace,
    ) -> Result<Outcome, RunError> {
        let Self { machine, container, config, plan } = self;
        let vsock = container.vsock();
        let agent = if config.restore.is_some() {
            Agent::Listens(vsock)
        } else {
            let socket = PathBuf::from(format!("{}_{HOST_PORT}", vsock.display()));
            let listener = UnixListener::bind(&socket)
                .map_err(|source| RunError::Host { action: "listen for the agent", source })?;
            Agent::Connects(listener)
        };
        let tap = attachment.and_then(Attachment::tap);
        let vm = VmProcess::spawn(&machine.program, config, tap, &container.vmm_log())?;
        container.record_vmm(vm.id())?;
        let make_plan = || plan.finish(attachment.map(|attachment| attachment.plan.clone()));
        let setup = Setup {
            config,
            agent,
            plan: &make_plan,
            stop_signal: plan.stop_signal,
            console: container.console_log(),
            until_started: Some(image),
            signals,
            streams,
            trace,
        };
        Ok(Session::new(setup, vm).run()?)
    }
}

/// Asked before anything is made or fetched, because without it nothing of that is of use.
fn check_kvm(path: &Path) -> Result<(), RunError> {
    access(path, Access::READ_OK | Access::WRITE_OK)
        .map_err(|error| RunError::Kvm { path: path.to_owned(), source: error.into() })
}

/// Whether the container gets an interface.
fn wants_network(choice: NetworkChoice, notice: &dyn Fn(&str)) -> Result<bool, RunError> {
    let missing = match choice {
        NetworkChoice::None => return Ok(false),
        NetworkChoice::Auto | NetworkChoice::Bridge => permission::missing(),
    };
    if missing.is_empty() {
        return Ok(true);
    }
    let missing = missing.join(" and ");
    if choice == NetworkChoice::Bridge {
        return Err(NetworkError::NotPermitted { missing }.into());
    }
    notice(&format!("no network in the container: that needs {missing}"));
    Ok(false)
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
