//! `/drives/{id}` and `/pmem/{id}`.

use serde::{Deserialize, Serialize};

use super::RateLimiter;

/// Whether the guest may flush.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum CacheType {
    /// Its flushes do nothing.
    #[default]
    Unsafe,
    /// Its flushes reach the medium.
    Writeback,
}

/// Who executes a drive's requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum IoEngine {
    /// The kernel, many at a time (io_uring).
    Async,
    /// The event loop, one after the other.
    #[default]
    Sync,
}

/// `PUT /drives/{id}`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The one in the path.
    pub drive_id: String,
    /// With `is_root_device`: the partition to boot from, in place of the whole drive.
    pub partuuid: Option<String>,
    /// The guest's `/dev/vda`, and its root file system.
    pub is_root_device: bool,
    /// Whether flushes count.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest cannot write.
    pub is_read_only: Option<bool>,
    /// Raw image file or block device.
    pub path_on_host: Option<String>,
    /// Its limits.
    pub rate_limiter: Option<RateLimiter>,
    /// Who does the work.
    pub io_engine: Option<IoEngine>,
    /// Of a vhost-user backend.
    pub socket: Option<String>,
}

/// `PATCH /drives/{id}`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// The one in the path.
    pub drive_id: String,
    /// Another medium.
    pub path_on_host: Option<String>,
    /// Other limits.
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /pmem/{id}`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// The one in the path.
    pub id: String,
    /// A regular file.
    pub path_on_host: String,
    /// The guest's root file system is on it.
    #[serde(default)]
    pub root_device: bool,
    /// What the guest writes stays in the VM.
    #[serde(default)]
    pub read_only: bool,
    /// Its limits.
    pub rate_limiter: Option<RateLimiter>,
}

/// `PATCH /pmem/{id}`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PmemUpdate {
    /// The one in the path.
    pub id: String,
    /// Other limits.
    pub rate_limiter: Option<RateLimiter>,
}
