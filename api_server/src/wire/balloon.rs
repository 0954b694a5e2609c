//! `/balloon`.

use serde::{Deserialize, Serialize};

/// `PUT /balloon` and the answer to `GET /balloon`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Memory that the guest shall leave unused, in MiB.
    pub amount_mib: u32,
    /// The guest may take memory back when it runs out.
    pub deflate_on_oom: bool,
    /// How often the guest reports, in seconds; 0 is never.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// The host may ask for free pages.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// The guest gives free pages back by itself.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// Memory that the guest shall leave unused, in MiB.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// How often the guest reports, in seconds.
    pub stats_polling_interval_s: u16,
}

/// `PATCH /balloon/hinting/start`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct HintingStart {
    /// Give the pages back to the guest when it is done.
    pub acknowledge_on_stop: bool,
}

impl Default for HintingStart {
    fn default() -> Self {
        HintingStart { acknowledge_on_stop: true }
    }
}

/// `GET /balloon/hinting/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HintingStatus {
    /// What the host asked for.
    pub host_cmd: u32,
    /// What the guest answered.
    pub guest_cmd: Option<u32>,
}

/// `GET /balloon/statistics`. What the guest did not say is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are those of virtio 1.2, section 5.5.6.3")]
pub struct BalloonStats {
    /// In pages of 4 KiB.
    pub target_pages: u32,
    /// In pages of 4 KiB.
    pub actual_pages: u32,
    pub target_mib: u32,
    pub actual_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
}
