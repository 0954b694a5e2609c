//! `lighter run`, from the image's name to the end of its process.

use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use agent_protocol::HOST_PORT;
use images::pull::PullOptions;
use images::{Image, ImageSource, Progress, Store, ext4, rootfs};
use rustix::fs::{Access, access};
use vmm::config::{DiskConfig, KernelConfig, NetConfig, VmConfig, VsockConfig};

use crate::container::Container;
use crate::container::id::ContainerId;
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::network::{Attachment, Network, permission};
use crate::plan::{Plan, PlanOptions, resources};
use crate::process::VmProcess;
use crate::session::signals::Signals;
use crate::session::{Outcome, Session, SessionError, Setup, Streams};
use crate::trace::Trace;
use crate::{carried, kernel};

/// The kernel's root is the agent's disk.
const ROOT_ARGUMENTS: &str = "root=/dev/vda ro rootfstype=erofs init=/init";
/// Context ID of every guest: each VM has a vsock device of its own, so they need not differ.
const GUEST_CID: u32 = 3;

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
    /// `--dns`
    pub dns: Vec<IpAddr>,
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
    let mut container = Container::create(dirs, id, options.name.as_deref())?;
    let disks = disks(dirs, &container, &plan, rootfs)?;
    trace.end("disks");
    let attachment = attach(dirs, options, &container, watcher.notice)?;
    trace.end("network");
    let config = VmConfig {
        vcpus: options.vcpus,
        mem_size_mib: resources::vm_memory_mib(options.memory_mib),
        kernel,
        disks,
        pmem: Vec::new(),
        net: attachment.as_ref().and_then(|attachment| {
            Some(NetConfig { tap_fd: attachment.tap()?.as_raw_fd(), mac: attachment.mac })
        }),
        vsock: Some(VsockConfig { guest_cid: GUEST_CID, uds_path: container.vsock() }),
        spare_slots: 0,
        plugged: Default::default(),
        console_log: Some(container.console_log()),
    };
    let program = carried::vmm(dirs)?;
    let result =
        supervise(&program, &container, &config, &plan, attachment.as_ref(), image, &signals, streams, trace);
    if matches!(result, Err(RunError::Session(SessionError::Lost(_)))) && !options.remove {
        container.keep_data();
        (watcher.notice)(&format!(
            "the disk of the lost container stays at {} until lighter is used again",
            container.disk().display()
        ));
    }
    result
}

/// Starts the machine and stays with it to its end.
#[expect(clippy::too_many_arguments, reason = "each is one owner of something that must outlive the machine")]
fn supervise(
    program: &Path,
    container: &Container,
    config: &VmConfig,
    plan: &Plan,
    attachment: Option<&Attachment>,
    image: Image,
    signals: &Signals,
    streams: Streams<'_>,
    trace: &mut Trace,
) -> Result<Outcome, RunError> {
    let agent_socket = PathBuf::from(format!("{}_{HOST_PORT}", container.vsock().display()));
    let listener = UnixListener::bind(&agent_socket)
        .map_err(|source| RunError::Host { action: "listen for the agent", source })?;
    let tap = attachment.and_then(Attachment::tap);
    let vm = VmProcess::spawn(program, config, tap, &container.vmm_log())?;
    container.record_vmm(vm.id())?;
    let make_plan = || plan.finish(attachment.map(|attachment| attachment.plan.clone()));
    let setup = Setup {
        config,
        listener,
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

/// Asked before anything is made or fetched, because without it nothing of that is of use.
fn check_kvm(path: &Path) -> Result<(), RunError> {
    access(path, Access::READ_OK | Access::WRITE_OK)
        .map_err(|error| RunError::Kvm { path: path.to_owned(), source: error.into() })
}

fn disks(
    dirs: &Dirs,
    container: &Container,
    plan: &Plan,
    rootfs: PathBuf,
) -> Result<Vec<DiskConfig>, RunError> {
    let read_only = |path, serial: &str| DiskConfig { path, read_only: true, serial: serial.to_owned() };
    let agent = carried::agent_disk(dirs)?;
    let mut disks = vec![read_only(agent, "agent"), read_only(rootfs, "image")];
    if plan.writable() {
        ext4::create_writable_layer(&container.disk(), ext4::DEFAULT_SIZE)?;
        disks.push(DiskConfig { path: container.disk(), read_only: false, serial: "writable".to_owned() });
    }
    Ok(disks)
}

fn attach(
    dirs: &Dirs,
    options: &RunOptions,
    container: &Container,
    notice: &dyn Fn(&str),
) -> Result<Option<Attachment>, RunError> {
    match options.network {
        NetworkChoice::None => return Ok(None),
        NetworkChoice::Bridge => {}
        NetworkChoice::Auto => {
            let missing = permission::missing();
            if !missing.is_empty() {
                let missing = missing.join(" and ");
                notice(&format!("no network in the container: that needs {missing}"));
                return Ok(None);
            }
        }
    }
    Ok(Some(Network::here(dirs)?.attach(&container.id, &options.dns)?))
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
