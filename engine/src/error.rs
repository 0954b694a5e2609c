//! Why a run failed before or beside the container's process: exit code 125.

use std::io;
use std::path::PathBuf;

use images::StoreError;
use images::ext4::Ext4Error;
use images::pull::PullError;
use images::rootfs::RootfsError;

use crate::carried::CarriedError;
use crate::container::ContainerError;
use crate::isolation::IsolationError;
use crate::kernel::KernelError;
use crate::network::NetworkError;
use crate::plan::PlanError;
use crate::process::ProcessError;
use crate::resources::cgroup::CgroupError;
use crate::session::SessionError;
use crate::template::MakeError;
use crate::volumes::VolumeError;

/// A failed run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No virtual machines on this host, or not for this user.
    #[error("cannot use {}: `lighter doctor` says what is missing and how to mend it", path.display())]
    Kvm {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No such isolation here.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// The guest kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The content store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Fetching the image.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The image's root filesystem.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The writable layer.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// What was to run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The container's place on the host.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The agent's disk.
    #[error(transparent)]
    Carried(#[from] CarriedError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Volumes and what else is mounted.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Limits.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The VMM process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The template could not be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// The machine, the guest or the agent.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The host.
    #[error("cannot {action}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
