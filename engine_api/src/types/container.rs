//! Containers.

use std::collections::BTreeMap;

use engine::container::record::Record;
use engine::container::state::{Health as EngineHealth, Status as EngineStatus};
use engine::volumes::MountKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::convert::{familiar, rfc3339};

/// How far a container is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    Created,
    /// Its machine comes up.
    Starting,
    /// Its process runs.
    Running,
    /// Its machine's processors are stopped.
    Paused,
    /// It ended and will be started again.
    Restarting,
    /// It ended.
    Exited,
}

/// How well a container is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not known yet.
    Starting,
    /// The last test succeeded.
    Healthy,
    /// Too many tests in a row failed.
    Unhealthy,
}

impl From<EngineStatus> for Status {
    fn from(status: EngineStatus) -> Self {
        match status {
            EngineStatus::Created => Self::Created,
            EngineStatus::Starting => Self::Starting,
            EngineStatus::Running => Self::Running,
            EngineStatus::Paused => Self::Paused,
            EngineStatus::Restarting => Self::Restarting,
            EngineStatus::Exited => Self::Exited,
        }
    }
}

impl From<EngineHealth> for Health {
    fn from(health: EngineHealth) -> Self {
        match health {
            EngineHealth::Starting => Self::Starting,
            EngineHealth::Healthy => Self::Healthy,
            EngineHealth::Unhealthy => Self::Unhealthy,
        }
    }
}

/// A container in a list.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct ContainerSummary {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image's name.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When it was created, RFC 3339.
    pub created: String,
    /// How far it is.
    pub status: Status,
    /// How well it is, where that is tested.
    pub health: Option<Health>,
    /// When its process last started.
    pub started: Option<String>,
    /// When it last ended.
    pub finished: Option<String>,
    /// Exit code of the last end.
    pub exit_code: Option<u8>,
    /// Notes.
    pub labels: BTreeMap<String, String>,
    /// Its address on its first network.
    pub address: Option<String>,
    /// Its networks.
    pub networks: Vec<String>,
    /// Ports of the host that lead to it, as `lighter ps` shows them.
    pub ports: Vec<String>,
}

/// Containers, newest first.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct ContainerList {
    /// They.
    pub items: Vec<ContainerSummary>,
    /// What to send as `cursor` for the next ones; nothing where there are none.
    pub next: Option<String>,
}

/// All that is known of a container.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Container {
    /// As in lists.
    #[serde(flatten)]
    pub summary: ContainerSummary,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Why it ended, where the exit code does not say.
    pub error: Option<String>,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// The keeper's process ID.
    pub keeper_pid: Option<u32>,
    /// The VMM's process ID.
    pub vmm_pid: Option<u32>,
    /// Its host name.
    pub hostname: String,
    /// Environment of its process.
    pub environment: Vec<String>,
    /// Working directory of its process.
    pub working_dir: String,
    /// User of its process.
    pub user: String,
    /// Its process has a terminal.
    pub tty: bool,
    /// Its process has a stdin.
    pub stdin: bool,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
    /// Its memory.
    pub memory_mib: u32,
    /// Its processors.
    pub vcpus: u8,
    /// What keeps it apart from its host.
    pub isolation: String,
    /// It has no writable layer.
    pub read_only: bool,
    /// It is removed at its end.
    pub auto_remove: bool,
    /// When it is started again by itself.
    pub restart: String,
    /// Seconds until it is killed when it does not end.
    pub stop_timeout: Option<u64>,
    /// Rented time in seconds.
    pub ttl: Option<u64>,
    /// What it may take of its host.
    pub resources: Value,
    /// Its networks in detail.
    pub network: Value,
    /// How its health is tested.
    pub health_test: Value,
    /// What it sees beside its image.
    pub mounts: Vec<MountView>,
    /// Its hardware address on its first network.
    pub mac: Option<String>,
}

/// What a container sees beside its image.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct MountView {
    /// `bind`, `volume` or `tmpfs`
    #[serde(rename = "type")]
    pub kind: String,
    /// The host's path, or the volume's name.
    pub source: Option<String>,
    /// Where it is in the container.
    pub target: String,
    /// Nobody writes through it.
    pub read_only: bool,
}

impl From<&Record> for ContainerSummary {
    fn from(record: &Record) -> Self {
        let (spec, state) = (&record.spec, &record.state);
        // A keeper that was killed could not note their end.
        let ports = state.ports.iter().filter(|_| state.status.is_live());
        Self {
            id: spec.id.as_str().to_owned(),
            name: record.name.clone(),
            image: familiar(&spec.image),
            command: spec.plan.process().args.clone(),
            created: rfc3339(spec.created_ns),
            status: state.status.into(),
            health: state.health.map(Into::into),
            started: state.started_ns.map(rfc3339),
            finished: state.finished_ns.map(rfc3339),
            exit_code: state.exit_code,
            labels: spec.labels.clone(),
            address: state.address.map(|address| address.to_string()),
            networks: spec.network.networks().map(str::to_owned).collect(),
            ports: ports.map(ToString::to_string).collect(),
        }
    }
}

impl From<&Record> for Container {
    fn from(record: &Record) -> Self {
        let (spec, state, process) = (&record.spec, &record.state, record.spec.plan.process());
        let json = |value: serde_json::Result<Value>| value.unwrap_or_default();
        Self {
            summary: record.into(),
            image_id: spec.image_id.clone(),
            error: state.error.clone(),
            restarts: state.restarts,
            keeper_pid: state.keeper,
            vmm_pid: state.vmm,
            hostname: spec.plan.hostname().to_owned(),
            environment: process.env.clone(),
            working_dir: process.cwd.clone(),
            user: process.user.clone(),
            tty: process.terminal.is_some(),
            stdin: process.stdin,
            stop_signal: spec.plan.stop_signal,
            memory_mib: spec.machine.memory_mib,
            vcpus: spec.machine.vcpus,
            isolation: spec.isolation.name().to_owned(),
            read_only: !spec.plan.writable(),
            auto_remove: spec.lifetime.remove,
            restart: restart(spec.lifetime.restart),
            stop_timeout: spec.lifetime.stop_timeout,
            ttl: spec.lifetime.ttl,
            resources: json(serde_json::to_value(&spec.resources)),
            network: json(serde_json::to_value(&spec.network)),
            health_test: json(serde_json::to_value(&spec.health)),
            mounts: spec
                .mounts
                .iter()
                .map(|mount| {
                    let (kind, source) = match &mount.kind {
                        MountKind::Bind { source } => ("bind", Some(source.display().to_string())),
                        MountKind::Volume { name, .. } => ("volume", Some(name.clone())),
                        MountKind::Tmpfs { .. } => ("tmpfs", None),
                        MountKind::Secrets { .. } => ("secret", None),
                    };
                    let (kind, target) = (kind.to_owned(), mount.target.clone());
                    MountView { kind, source, target, read_only: mount.read_only }
                })
                .collect(),
            mac: state.mac.clone(),
        }
    }
}

fn restart(policy: engine::container::spec::RestartPolicy) -> String {
    use engine::container::spec::RestartPolicy;
    match policy {
        RestartPolicy::No => "no".to_owned(),
        RestartPolicy::OnFailure(0) => "on-failure".to_owned(),
        RestartPolicy::OnFailure(times) => format!("on-failure:{times}"),
        RestartPolicy::Always => "always".to_owned(),
        RestartPolicy::UnlessStopped => "unless-stopped".to_owned(),
    }
}

/// What the process that runs a container's machine holds.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Security {
    /// As `lighter inspect --security --format json` shows it.
    pub report: Value,
}

/// How to stop a container.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Name or number, instead of the container's stop signal.
    pub signal: Option<String>,
    /// Seconds to wait, instead of the container's.
    #[schemars(range(max = 86400))]
    pub timeout: Option<u64>,
}

/// A signal.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kill {
    /// Name or number.
    pub signal: String,
}

impl Default for Kill {
    fn default() -> Self {
        Self { signal: "KILL".to_owned() }
    }
}

/// Another name.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// It.
    pub name: String,
}

/// Other limits; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// Another name.
    pub name: Option<String>,
    /// Processor time in CPUs, at most as many as the machine has.
    pub cpus: Option<f64>,
    /// Memory: up to what it was started with while it runs, any size while it does not.
    pub memory_mib: Option<u32>,
    /// What it may take of its host.
    pub rates: super::Rates,
    /// When it is started again by itself, from its next start on: no, on-failure[:TIMES], always, unless-stopped.
    pub restart: Option<String>,
}

/// One more process in a container.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments.
    #[schemars(length(min = 1))]
    pub command: Vec<String>,
    /// Beside the container's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Instead of the container's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Instead of the container's.
    #[serde(default)]
    pub user: Option<String>,
    /// All capabilities.
    #[serde(default)]
    pub privileged: bool,
    /// A terminal; only with an upgrade.
    #[serde(default)]
    pub tty: bool,
    /// Take stdin from the stream; only with an upgrade.
    #[serde(default)]
    pub stdin: bool,
    /// All of stdin; only without an upgrade.
    #[serde(default)]
    pub input: Option<String>,
    /// Answer when it runs instead of when it ends; only without an upgrade.
    #[serde(default)]
    pub detach: bool,
}

/// What a process said and how it ended.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
pub struct Executed {
    /// Its exit code; nothing where nobody waited for it.
    pub exit_code: Option<u8>,
    /// Why it ended, where the exit code does not say.
    pub error: Option<String>,
    /// The first MiB of its stdout; what is no UTF-8 is replaced.
    pub stdout: String,
    /// The same of stderr.
    pub stderr: String,
}

/// The end of a container.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Waited {
    /// As `lighter run` would have it.
    pub exit_code: u8,
    /// Why it ended, where the exit code does not say.
    pub error: Option<String>,
}

/// A part of what a container wrote.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct LogLine {
    /// When it came, RFC 3339.
    pub time: String,
    /// `stdout` or `stderr`
    pub stream: String,
    /// What is no UTF-8 is replaced.
    pub text: String,
}

/// What a container changed in its image.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Changes {
    /// Each directory before what is in it.
    pub changes: Vec<Change>,
}

/// A path that differs from the image's.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Change {
    /// `A`: added, `C`: changed, `D`: deleted.
    pub kind: String,
    /// From `/` on.
    pub path: String,
}

/// What a new image says of itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Commit {
    /// Its name; its ID where there is none.
    pub name: Option<String>,
    /// Shown by its history.
    pub message: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// Dockerfile instructions that edit its configuration, such as `CMD ["sh"]`.
    pub changes: Vec<String>,
    /// How the layer is compressed.
    pub compression: Compression,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Runs everywhere.
    #[default]
    Gzip,
    /// Smaller and faster; Docker 23 and newer.
    Zstd,
}

/// Copies of a running container.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloneOptions {
    /// How many.
    #[schemars(range(min = 1, max = 10000))]
    pub count: u32,
    /// Name of the copy; of several ones, NAME-1, NAME-2 and so on.
    pub name: Option<String>,
}

impl Default for CloneOptions {
    fn default() -> Self {
        Self { count: 1, name: None }
    }
}

/// Containers that were made.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Made {
    /// Their IDs.
    pub ids: Vec<String>,
}

/// What something costs the host and what its guest believes, `lighter stats`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Stats {
    /// The container's ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Of one host CPU, since the reading before; nothing in the first one.
    pub cpu_percent: Option<f64>,
    /// When it was read, CLOCK_MONOTONIC in ns.
    pub time_ns: u64,
    /// Processor time of its VMM with all vCPUs, in ns.
    pub cpu_ns: u64,
    /// What the guest's kernel says of its memory, in bytes.
    pub guest: Value,
    /// What the host really gives, in bytes.
    pub host: Value,
    /// Bytes read from and written to the host's storage.
    pub block: Value,
    /// Bytes received and sent on bridges.
    pub net: Value,
}
