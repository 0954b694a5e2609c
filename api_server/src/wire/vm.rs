//! `/`, `/vm` and `/vm/config`, which is a configuration file too.

use serde::{Deserialize, Serialize};

use super::{
    Balloon, BootSource, Drive, Entropy, Logger, Machine, MemoryHotplug, Metrics, MmdsConfig,
    NetworkInterface, Pmem, Vsock,
};

/// How a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VmState {
    /// It is being configured.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs are out of the guest.
    Paused,
    /// Its vCPUs run.
    Running,
}

/// Answer to `GET /`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceInfo {
    /// As given with `--id`.
    pub id: String,
    /// How the VM is.
    pub state: VmState,
    /// The release whose API this is.
    pub vmm_version: String,
    /// What clients expect to find: `Firecracker`.
    pub app_name: String,
}

/// What a VM can be told to be.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum VmUpdateState {
    /// Out of the guest.
    Paused,
    /// In the guest.
    Resumed,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What it shall be.
    pub state: VmUpdateState,
}

/// Answer to `GET /vm/config`; a file for `--config-file`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "each is the body of the request of its name")]
pub struct WholeConfig {
    pub balloon: Option<Balloon>,
    pub drives: Vec<Drive>,
    pub boot_source: BootSource,
    pub cpu_config: Option<serde_json::Value>,
    pub logger: Option<Logger>,
    pub machine_config: Option<Machine>,
    pub metrics: Option<Metrics>,
    pub mmds_config: Option<MmdsConfig>,
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
    #[serde(default)]
    pub pmem: Vec<Pmem>,
    pub memory_hotplug: Option<MemoryHotplug>,
}
