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
    /// Load average of the last minute before the first measurement: busy tasks.
    pub load: f64,
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
        load: load(),
        emulated,
    }
}

impl Host {
    /// A warning where others use the processors.
    pub fn busy(&self) -> Option<String> {
        (self.load > self.cpus as f64 * 0.75).then(|| {
            format!(
                "the host was busy before (load average {:.1} on {} processors): times and speeds say what was left over, \
                 not what the host can",
                self.load, self.cpus
            )
        })
    }
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

/// A line of `/proc/meminfo`, in bytes.
pub fn memory(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}
