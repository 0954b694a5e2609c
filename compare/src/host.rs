//! What the host is, for the report's header.

use serde::{Deserialize, Serialize};

/// The host.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Its processors.
    pub cpu: String,
    /// How many of them there are.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// Guests' kernels are emulated; `None` without VMs.
    pub emulated: Option<bool>,
}

/// This host.
pub fn describe(emulated: Option<bool>) -> Host {
    let name = rustix::system::uname();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Host {
        name: name.nodename().to_string_lossy().into_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
        cpu: model.map(|(_, model)| model.to_owned()).unwrap_or_else(|| "unknown".to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory("MemTotal:"),
        emulated,
    }
}

/// A line of `/proc/meminfo`, in bytes.
pub fn memory(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}
