//! `/machine-config` and `/hotplug/memory`.

use serde::{Deserialize, Serialize};

/// Pages behind the guest's memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    None,
    /// What the host's kernel makes of it.
    Transparent,
    /// From hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// What the guest's CPUs look like.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "names of Firecracker's, none is offered")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    /// Like the host's.
    None,
}

/// `PUT /machine-config` and the answer to `GET /machine-config`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u32,
    /// Two threads a core.
    #[serde(default)]
    pub smt: bool,
    /// Deprecated in Firecracker too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Differential snapshots are wanted.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Pages behind the memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// `PATCH /machine-config`: what is not there stays.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "see `Machine`")]
pub struct MachineUpdate {
    pub vcpu_count: Option<u8>,
    pub mem_size_mib: Option<u32>,
    pub smt: Option<bool>,
    pub cpu_template: Option<CpuTemplate>,
    pub track_dirty_pages: Option<bool>,
    pub huge_pages: Option<HugePages>,
}

impl MachineUpdate {
    /// `machine` with this changed.
    pub fn apply(&self, machine: &Machine) -> Machine {
        Machine {
            vcpu_count: self.vcpu_count.unwrap_or(machine.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(machine.mem_size_mib),
            smt: self.smt.unwrap_or(machine.smt),
            cpu_template: self.cpu_template.or(machine.cpu_template),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(machine.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(machine.huge_pages),
        }
    }
}

/// `PUT /hotplug/memory`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplug {
    /// In MiB.
    pub total_size_mib: u32,
    /// In MiB.
    #[serde(default)]
    pub block_size_mib: Option<u32>,
    /// In MiB.
    #[serde(default)]
    pub slot_size_mib: Option<u32>,
}

/// `PATCH /hotplug/memory`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugUpdate {
    /// In MiB.
    pub requested_size_mib: u32,
}

/// `GET /hotplug/memory`; in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct MemoryHotplugStatus {
    pub total_size_mib: u32,
    pub slot_size_mib: u32,
    pub block_size_mib: u32,
    pub plugged_size_mib: u32,
    pub requested_size_mib: u32,
}
