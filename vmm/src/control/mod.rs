//! The control socket of a VMM process: one JSON object a line each way.
//!
//! ```text
//! {"request":"snapshot","dir":"/var/lib/x"}  ─►
//!                                            ◄─  {"ok":{"paused_us":8200,"memory_bytes":31457280}}
//! {"request":"resume"}                       ─►
//!                                            ◄─  {"error":{"kind":"state","message":"cannot resume a VM that is running"}}
//! ```
//!
//! A client sends its next request after the answer to the one before. Served by the VM's own event loop.

mod client;
mod server;

use std::path::PathBuf;

use devices::rate::RateLimits;
use serde::{Deserialize, Serialize};

pub use self::client::{Client, ClientError};
pub(crate) use self::server::Asked;
pub use self::server::{Server, ServerError};

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the VM is.
    Status,
    /// Take every vCPU out of the guest and leave the devices alone.
    Pause,
    /// Let a paused VM go on.
    Resume,
    /// Write a snapshot. A running VM goes on meanwhile, is paused at the end and then goes on.
    Snapshot {
        /// The directory to make, an absolute path.
        dir: PathBuf,
        /// Only what was written since the snapshot in this directory, an absolute path: the last one of this
        /// VM with `track`, or a differential one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<PathBuf>,
        /// Note from now on which pages the guest writes: this snapshot can be a base then. The guest's first
        /// write to a page costs more.
        #[serde(default)]
        track: bool,
        /// Leave a running VM paused at the end, so that its disks can be copied as they are then.
        #[serde(default)]
        stay_paused: bool,
    },
    /// Ask the guest to leave so much of its memory unused. Answered at once: [`Request::Status`] says how
    /// far the guest got.
    Balloon {
        /// In MiB, at most the guest's memory; 0 gives all of it back to the guest.
        mib: u32,
    },
    /// Replace the limits of a disk or a network interface.
    Limit {
        /// As the guest calls it: `vda`, `eth0`, ...
        device: String,
        /// The new ones.
        limits: RateLimits,
    },
    /// Put a network interface into a spare slot of a running VM; its TAP's descriptor comes with the request
    /// (SCM_RIGHTS). The guest finds it by probing that slot.
    PlugNet(PlugNet),
    /// Take a device out of its slot. The guest's driver should have let go of it.
    Unplug {
        /// As the guest calls it: `eth0`, ...
        name: String,
    },
}

/// A network interface that comes while the VM runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlugNet {
    /// What it is called: as no other device is.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What it may carry.
    #[serde(default)]
    pub limits: RateLimits,
}

impl Request {
    /// Write a full snapshot to the absolute path `dir`.
    pub fn snapshot(dir: impl Into<PathBuf>) -> Self {
        Request::Snapshot { dir: dir.into(), base: None, track: false, stay_paused: false }
    }
}

/// An answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Ok(Done),
    /// It was not.
    Error(Refusal),
}

/// What was done, and what is worth knowing about it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Done {
    /// [`Request::Status`]: `running` or `paused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// [`Request::Status`]: number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// [`Request::Status`]: guest memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u32>,
    /// [`Request::Status`]: memory that the guest leaves unused, in MiB, if there is a balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon_mib: Option<u32>,
    /// [`Request::Snapshot`]: for how many microseconds a running VM was paused, unless it stays so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
    /// [`Request::PlugNet`] and [`Request::Unplug`]: the number of the virtio slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
    /// [`Request::Snapshot`]: bytes of memory that were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// Why something was not done.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Whose fault it is.
    pub kind: RefusalKind,
    /// What, why and, where there is one, the fix.
    pub message: String,
}

/// Classes of [`Refusal`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request.
    Request,
    /// The VM is in another state.
    State,
    /// The host.
    Host,
}
