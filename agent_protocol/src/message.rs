//! The messages, plain data.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::mount::MountPlan;
use crate::tool::{Piece, ToolPlan};

/// Host to agent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum HostMessage {
    /// Mount the container's root and make everything else that is the same for each container of an image, and
    /// stop there: the machine can then become a template. Once per VM.
    Prepare {
        /// The root.
        root: RootPlan,
        /// What its containers will read.
        read_ahead: ReadAhead,
    },
    /// Prepare the machine, unless that was done, and run the container's main process. Once per VM.
    Start(Box<ContainerPlan>),
    /// Run one more process in the container. Once per session.
    Exec(Box<ProcessPlan>),
    /// Bytes for the process's stdin, at most [`crate::MAX_CHUNK`].
    Stdin(#[serde(with = "serde_bytes")] Vec<u8>),
    /// End of stdin.
    StdinEof,
    /// Send this signal number to the process.
    Signal(i32),
    /// New size of the process's terminal.
    Resize(TerminalSize),
    /// Sync and power off now. Sent after everything that matters was read.
    PowerOff,
    /// Run one of the agent's tools and give it this connection. Of this list, only what names tools may follow.
    Tool {
        /// What it shall do.
        plan: ToolPlan,
        /// The host reads and writes large files on the container's disks; see [`crate::tool`].
        on_disk: bool,
    },
    /// To a tool: the file whose header was just sent may be written to the disk.
    Offer,
    /// To a tool: the pieces were read, or written.
    Done,
    /// Say what the guest's memory is used for; answered by `Usage`.
    Usage,
    /// Bring up an interface while the container runs: one that has just come into the virtio slot `slot`, or one that is
    /// there. Answered by `Rewired`.
    Connect {
        /// Number of the slot.
        slot: Option<u8>,
        /// How the interface shall be.
        interface: InterfacePlan,
    },
    /// Let go of an interface, whose device will be gone. Answered by `Rewired`.
    Disconnect {
        /// Its hardware address.
        mac: [u8; 6],
    },
    /// Let go of the container's main process: what it wrote and was read is sent, then `Held`, and nothing more is
    /// read from it until `Release`, or until a copy of the machine gets `Adopt`.
    Hold,
    /// Take it again.
    Release,
    /// This machine is a copy of a running container's: become the container of this plan and take its main process,
    /// which was held. Answered like `Start`. Once per copy.
    Adopt(Box<ContainerPlan>),
}

/// Agent to host.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum AgentMessage {
    /// First message of each session.
    Hello {
        /// [`crate::PROTOCOL_VERSION`] of the agent.
        protocol: u8,
        /// `uname -r` of the guest.
        kernel_release: String,
        /// Guest CLOCK_BOOTTIME in ns when the agent began.
        agent_start_ns: u64,
        /// Guest CLOCK_BOOTTIME in ns when this was sent.
        now_ns: u64,
    },
    /// The container's root is there and nothing of the container runs.
    Prepared,
    /// The process runs (its exec succeeded).
    Started {
        /// Process ID inside the guest.
        pid: u32,
    },
    /// The process could not be started, or the plan not be carried out.
    Failed {
        /// Decides the exit code.
        kind: FailureKind,
        /// What, why, the fix.
        message: String,
    },
    /// Bytes from stdout, in order.
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes from stderr, in order.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// So many more bytes of stdin may be sent.
    StdinCredit(u32),
    /// The process ended and all its output was sent before this.
    Exited(ExitStatus),
    /// What the guest's memory is used for.
    Usage(Usage),
    /// The interfaces are as the host wants them.
    Rewired,
    /// From a tool: the next part of a file's content is on the disks. Answered by `Done`.
    Pieces(Vec<Piece>),
    /// From a tool: the offered file's content should be sent.
    Declined,
    /// Nothing of the main process is on its way any more, see [`HostMessage::Hold`].
    Held,
}

/// What the guest's memory is used for, as its kernel counts, in KiB.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// MemTotal
    pub total_kib: u64,
    /// MemAvailable: what new processes could have.
    pub available_kib: u64,
    /// Buffers and Cached: files that the guest remembers.
    pub cached_kib: u64,
}

/// Why a start failed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum FailureKind {
    /// Exit code 127.
    NotFound,
    /// Exit code 126.
    NotExecutable,
    /// Exit code 125: the agent or the plan.
    Agent,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExitStatus {
    /// By `exit` with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// Everything between an idle agent and a running container.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ContainerPlan {
    /// The container's root file system.
    pub root: RootPlan,
    /// Host name, also in `/etc/hostname` and `/etc/hosts`.
    pub hostname: String,
    /// Wall clock in ns since 1970, set before anything runs.
    pub realtime_ns: u64,
    /// 32 bytes of the host's entropy, credited to the guest's random generator.
    pub entropy: [u8; 32],
    /// `None`: loopback only.
    pub network: Option<NetworkPlan>,
    /// What is mounted in the container's root, in this order.
    pub mounts: Vec<MountPlan>,
    /// The main process.
    pub process: ProcessPlan,
    /// Power off when the main process ended and the host hung up.
    pub power_off_at_exit: bool,
    /// Beside those of the machine.
    pub limits: GuestLimits,
}

/// Limits that the guest's kernel holds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestLimits {
    /// Processes and threads at once; 0 is no limit.
    pub pids: u32,
    /// Size of `/dev/shm` in bytes; 0 is the usual 64 MiB.
    pub shm_bytes: u64,
}

/// Which disks make the root.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootPlan {
    /// Block device with the image, EROFS, for example `/dev/vdb`.
    pub image_device: String,
    /// Block device with the writable layer, ext4. `None`: the root is read-only.
    pub writable_device: Option<String>,
}

/// Programs whose files are read before there is a container, so that they are in memory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReadAhead {
    /// Programs, looked for as an `execvp` would.
    pub programs: Vec<String>,
    /// Where they are looked for, `PATH` of the image.
    pub path: Option<String>,
}

/// The guest's interfaces and its files about names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NetworkPlan {
    /// `eth0`, `eth1` and so on.
    pub interfaces: Vec<InterfacePlan>,
    /// Text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// More lines of `/etc/hosts`: address, names.
    pub extra_hosts: Vec<(String, String)>,
    /// The agent takes questions about names on 127.0.0.11 and passes them to the host.
    pub resolver: bool,
    /// The agent takes connections on [`crate::FORWARD_PORT`] for the ports of `eth0`.
    pub forward: bool,
}

/// One interface of the guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InterfacePlan {
    /// Hardware address. The one that the device had when the machine was made may be a template's.
    pub mac: [u8; 6],
    /// Address and prefix length.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Default gateway.
    pub gateway_v4: Option<Ipv4Addr>,
    /// Address and prefix length.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// Default gateway.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Interface MTU in bytes.
    pub mtu: u32,
}

/// One process of the container.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ProcessPlan {
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub args: Vec<String>,
    /// `NAME=value`, whole.
    pub env: Vec<String>,
    /// Created if missing.
    pub cwd: String,
    /// As in an image: empty, `user`, `uid`, `user:group`, `uid:gid`; names come from the image's files.
    pub user: String,
    /// Names or numbers of supplementary groups.
    pub additional_groups: Vec<String>,
    /// `None` or a terminal for stdin, stdout and stderr.
    pub terminal: Option<TerminalSize>,
    /// Whether stdin is forwarded; else it is `/dev/null`.
    pub stdin: bool,
    /// (name as in `RLIMIT_NOFILE`, soft, hard)
    pub rlimits: Vec<(String, u64, u64)>,
    /// Capabilities to keep (`CAP_CHOWN`); the rest is dropped from every set.
    pub capabilities: Vec<String>,
    /// Set PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}
