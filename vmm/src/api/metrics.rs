//! The metrics: one JSON object a line, with the names of Firecracker's where the figure exists.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use api_server::Fault;
use api_server::http::Method;
use api_server::wire::Metrics as Config;
use serde_json::{Value, json};

use super::{fault, files};
use crate::clock;

/// Counters since the last line, and where lines go.
#[derive(Debug, Default)]
pub struct Metrics {
    id: String,
    sink: Option<(File, Config)>,
    counts: BTreeMap<(&'static str, String), u64>,
    latencies_us: BTreeMap<&'static str, u64>,
    startup_us: u64,
}

/// What is counted by name: more paths than there are make no further counters.
const MAX_COUNTERS: usize = 64;

impl Metrics {
    /// The metrics of the VM `id`, whose process needed so long until its API was there.
    pub fn new(id: &str, startup: Duration) -> Self {
        Metrics { id: id.to_owned(), startup_us: startup.as_micros() as u64, ..Metrics::default() }
    }

    /// Says where lines go, once.
    pub fn configure(&mut self, config: Config) -> Result<(), Fault> {
        let what = "Metrics error: Cannot initialize the metrics system due to bad user input";
        if self.sink.is_some() {
            return Err(Fault::new(format!("{what}: Reinitialization of metrics not allowed.")));
        }
        let file = files::open_sink(Path::new(&config.metrics_path));
        self.sink = Some((file.map_err(|error| fault::refused(what, &error))?, config));
        Ok(())
    }

    /// Counts a request.
    pub fn count(&mut self, method: Method, path: &str, failed: bool) {
        let group = match method {
            Method::Get => "get_api_requests",
            Method::Put => "put_api_requests",
            Method::Patch => "patch_api_requests",
            Method::Delete => "delete_api_requests",
        };
        let name = match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
            "" => "instance_info",
            "version" => "vmm_version",
            "actions" => "actions",
            "boot-source" => "boot_source",
            "machine-config" => "machine_cfg",
            "cpu-config" => "cpu_cfg",
            "drives" => "drive",
            "network-interfaces" => "network",
            "hotplug" => "hotplug_memory",
            known @ ("balloon" | "logger" | "metrics" | "mmds" | "pmem" | "serial" | "vsock") => known,
            _ => return,
        };
        for key in std::iter::once(format!("{name}_count")).chain(failed.then(|| format!("{name}_fails"))) {
            if self.counts.len() < MAX_COUNTERS || self.counts.contains_key(&(group, key.clone())) {
                *self.counts.entry((group, key)).or_default() += 1;
            }
        }
    }

    /// Notes how long the last `what` took.
    pub fn took(&mut self, what: &'static str, time: Duration) {
        self.latencies_us.insert(what, time.as_micros() as u64);
    }

    /// Writes a line with the devices' figures, if there is somewhere to write it; counters begin anew.
    pub fn flush(&mut self, devices: Value) -> std::io::Result<()> {
        let Some((file, config)) = &mut self.sink else { return Ok(()) };
        let mut line = json!({
            "utc_timestamp_ms": clock::realtime_ns() / 1_000_000,
            "api_server": { "process_startup_time_us": self.startup_us },
            "latencies_us": self.latencies_us,
        });
        for ((group, key), count) in std::mem::take(&mut self.counts) {
            line[group][key] = count.into();
        }
        if let (Value::Object(line), Value::Object(devices)) = (&mut line, devices) {
            line.extend(devices);
        }
        if config.emit_id {
            line["id"] = self.id.as_str().into();
        }
        if let Some(properties) = &config.properties {
            line["properties"] = json!(properties);
        }
        file.write_all(format!("{line}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_was_counted_since_the_one_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut metrics = Metrics::new("vm", Duration::from_micros(7));
        metrics.flush(json!({})).unwrap();
        let metrics_path = file.path().to_str().unwrap().to_owned();
        metrics.configure(Config { metrics_path, emit_id: true, properties: None }).unwrap();
        metrics.count(Method::Put, "/drives/a", false);
        metrics.count(Method::Put, "/drives/b", true);
        metrics.count(Method::Get, "/made/up", true);
        metrics.took("pause_vm", Duration::from_micros(5));
        metrics.flush(json!({"vcpu":{"exits":1}})).unwrap();
        metrics.flush(json!({})).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["put_api_requests"], json!({"drive_count":2,"drive_fails":1}));
        assert_eq!(lines[0]["latencies_us"]["pause_vm"], 5);
        assert_eq!((&lines[0]["vcpu"]["exits"], &lines[0]["id"]), (&json!(1), &json!("vm")));
        assert_eq!(lines[1].get("put_api_requests"), None);
        assert!(metrics.configure(Config::default()).is_err());
    }
}
