//! The warden: in the place of a VMM and its guest where a container runs in no VM.
//!
//! ```text
//! keeper ── spawns ──► warden ── runc ──► the container's process      (--isolation container)
//!    │                    └─── chroot ──► the container's process      (--isolation process)
//!    └── v.sock: the agent's protocol ──┘
//! ```
//!
//! It speaks the agent's protocol on the socket where the agent of a guest would be found, and reports to its keeper as
//! a VMM does: streams, signals, exit codes, `exec` and health checks are the same code for all three isolations.
//! Everything that it makes lives in a mount namespace of its own (and, for `container`, in a PID namespace), so that
//! the kernel removes it with the last process, whatever ended the warden; cgroups are removed by [`cgroup::sweep`].
//!
//! One thread: it forks, and it changes namespaces.

mod bare;
mod bundle;
pub mod cgroup;
mod contained;
mod control;
mod files;
mod idmap;
mod life;
mod limits;
mod names;
mod place;
mod questions;
mod root;
mod runc;
mod seccomp;
mod wards;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use life::{Args, run};
pub use runc::program as runtime;

/// Name of the verb that a warden runs as.
pub const VERB: &str = "warden";

/// What keeps a container apart from its host.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Another root directory, nothing else.
    Process,
    /// Namespaces, cgroups, capabilities, system call filter: the kernel is the host's.
    Container,
    /// A machine with a kernel of its own.
    #[default]
    Vm,
}

impl Isolation {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Vm => "vm",
        }
    }
}

/// What a warden is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WardenConfig {
    /// `Process` or `Container`.
    pub isolation: Isolation,
    /// The container's ID.
    pub id: String,
    /// The image's root filesystem, EROFS.
    pub image: PathBuf,
    /// Directory of the writable layer. `None`: the root is read-only.
    pub layer: Option<PathBuf>,
    /// Where sessions are taken.
    pub vsock: PathBuf,
    /// Where requests to pause are taken.
    pub control: PathBuf,
    /// Descriptor of a network namespace with the interfaces `eth0`, … for the container.
    pub network: Option<i32>,
    /// What the container may take of its host.
    pub limits: Limits,
    /// Directories and files of the host that the plan's mounts name by their number.
    pub shares: Vec<PathBuf>,
    /// Every capability, no masked paths, no filter.
    pub privileged: bool,
}

/// Limits on a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// In bytes.
    pub memory: Option<u64>,
    /// Processor time and period, in microseconds.
    pub quota: Option<(u64, u64)>,
    /// Weight; 1024 where nothing is said.
    pub shares: Option<u64>,
    /// A list of processors.
    pub cpuset: Option<String>,
}
