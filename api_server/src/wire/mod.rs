//! The bodies of requests and answers: Firecracker's names, defaults and strictness.
//!
//! Unknown fields are refused everywhere, also where Firecracker overlooks them (token buckets, overrides).

mod balloon;
mod boot;
mod drive;
mod machine;
mod mmds;
mod net;
mod observe;
mod snapshot;
mod vm;

pub use self::balloon::{
    Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, HintingStart, HintingStatus,
};
pub use self::boot::BootSource;
pub use self::drive::{CacheType, Drive, DriveUpdate, IoEngine, Pmem, PmemUpdate};
pub use self::machine::{
    CpuTemplate, HugePages, Machine, MachineUpdate, MemoryHotplug, MemoryHotplugStatus, MemoryHotplugUpdate,
};
pub use self::mmds::{MmdsConfig, MmdsVersion};
pub use self::net::{Entropy, NetworkInterface, NetworkInterfaceUpdate, Serial, Vsock};
pub use self::observe::{Level, Logger, Metrics};
pub use self::snapshot::{
    LoadHugePages, MemBackend, MemBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};
pub use self::vm::{InstanceInfo, VmState, VmUpdate, VmUpdateState, WholeConfig};

use serde::{Deserialize, Serialize};

/// A token bucket: `size` tokens, refilled within `refill_time` milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Bytes or operations; 0 is no limit.
    pub size: u64,
    /// Tokens that there are once at the beginning.
    pub one_time_burst: Option<u64>,
    /// In milliseconds; 0 is no limit.
    pub refill_time: u64,
}

/// Limits of a device; without one, that is not limited.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    pub ops: Option<TokenBucket>,
}
