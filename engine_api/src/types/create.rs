//! A new container.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a container is made of: the options of `lighter create`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateContainer {
    /// The image: a reference, or `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE`, `dir:DIR`.
    #[schemars(length(min = 1))]
    pub image: String,
    /// Its name; two words where nothing is said.
    #[serde(default)]
    pub name: Option<String>,
    /// What to run instead of the image's command.
    #[serde(default)]
    pub command: Vec<String>,
    /// Program to run instead of the image's.
    #[serde(default)]
    pub entrypoint: Option<String>,
    /// Variables beside the image's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// USER[:GROUP]
    #[serde(default)]
    pub user: Option<String>,
    /// More groups for the process.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Host name; its ID where nothing is said.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Its process has a stdin.
    #[serde(default)]
    pub stdin: bool,
    /// Its stdin ends with the first client that has it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Its process has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Memory.
    #[serde(default)]
    #[schemars(range(min = 16, max = 1048576))]
    pub memory_mib: Option<u32>,
    /// Processor time in CPUs, up to 32; the machine has as many as that needs.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// What it may take of its host.
    #[serde(default)]
    pub rates: Rates,
    /// What keeps it apart from its host.
    #[serde(default)]
    pub isolation: IsolationKind,
    /// Guest kernel on the host.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Initial RAM disk on the host.
    #[serde(default)]
    pub initrd: Option<String>,
    /// More words for the guest kernel's command line.
    #[serde(default)]
    pub kernel_args: Vec<String>,
    /// Boot the machine instead of cloning the image's template.
    #[serde(default)]
    pub cold: bool,
    /// Do not confine the process that runs the machine.
    #[serde(default)]
    pub no_sandbox: bool,
    /// Give memory that the guest frees back to the host.
    #[serde(default)]
    pub memory_reclaim: Option<bool>,
    /// Its network.
    #[serde(default)]
    pub network: Network,
    /// What it sees of its host and of volumes.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Files of the host that it finds as `/run/secrets/NAME`, in memory only.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// No writable layer.
    #[serde(default)]
    pub read_only: bool,
    /// All capabilities.
    #[serde(default)]
    pub privileged: bool,
    /// Capabilities to keep.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// Resource limits, each NAME=SOFT[:HARD].
    #[serde(default)]
    pub ulimits: Vec<String>,
    /// Nothing in it gains privileges by executing a program.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Processes and threads at once.
    #[serde(default)]
    pub pids_limit: Option<u32>,
    /// Size of /dev/shm in bytes.
    #[serde(default)]
    pub shm_bytes: Option<u64>,
    /// Remove it when it ends.
    #[serde(default)]
    pub auto_remove: bool,
    /// Start it again when it ends: no, on-failure[:TIMES], always, unless-stopped.
    #[serde(default)]
    pub restart: Option<String>,
    /// Signal that asks it to end.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Seconds until it is killed when it does not end.
    #[serde(default)]
    #[schemars(range(max = 86400))]
    pub stop_timeout: Option<u64>,
    /// Rented time: seconds after which it is stopped.
    #[serde(default)]
    pub ttl: Option<u64>,
    /// How its health is tested.
    #[serde(default)]
    pub health: HealthTest,
    /// Notes. Names that begin with `lighter.` are lighter's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How much of its output is kept.
    #[serde(default)]
    pub log: LogLimits,
    /// When to ask the registry.
    #[serde(default)]
    pub pull: PullWhen,
    /// How to talk to the registry.
    #[serde(default)]
    pub registry: Registry,
    /// Start it, and answer when its process runs.
    #[serde(default)]
    pub start: bool,
}

/// What a container may take of its host: the options of `lighter run`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Weight of its processor time against others'.
    #[schemars(range(min = 2, max = 262144))]
    pub cpu_shares: Option<u64>,
    /// CPUs of the host that it may use, for example 0-2,4.
    pub cpuset_cpus: Option<String>,
    /// Bytes a second that its disks give, each [DEVICE:]RATE.
    pub device_read_bps: Vec<String>,
    /// Bytes a second that its disks take.
    pub device_write_bps: Vec<String>,
    /// Reads a second.
    pub device_read_iops: Vec<String>,
    /// Writes a second.
    pub device_write_iops: Vec<String>,
    /// Bytes (10mb) or bits (100mbit) a second that it sends, and as many that it receives.
    pub network_rate: Option<String>,
}

/// What keeps a container apart from its host.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationKind {
    /// A machine with a kernel of its own.
    #[default]
    Vm,
    /// Namespaces, cgroups, capabilities and a system call filter, by runc.
    Container,
    /// Another root directory and nothing else: no protection.
    Process,
}

/// A container's network.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// How it is connected.
    pub mode: NetworkMode,
    /// The networks that it is in, the first one being `eth0`; only with the mode `bridge`, where none means the default
    /// one.
    #[schemars(length(max = 8))]
    pub endpoints: Vec<Endpoint>,
    /// Ports of the container on the host, each [[ADDRESS:]PORT:]PORT[/udp].
    pub publish: Vec<String>,
    /// Publish every port that the image exposes on a free port of the host.
    pub publish_all: bool,
    /// Name servers instead of the host's.
    pub dns: Vec<IpAddr>,
    /// Domains in which names without dots are looked for.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf.
    pub dns_options: Vec<String>,
    /// Names and addresses that it knows beside; the address host-gateway is the host's.
    pub hosts: BTreeMap<String, String>,
    /// If there are any, it reaches only these: NAME|CIDR[:PORT].
    pub egress_allow: Vec<String>,
}

/// How a container is connected.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// `bridge` where that is permitted, else `user`.
    #[default]
    Auto,
    /// Loopback only.
    None,
    /// A user-mode network of its own.
    User,
    /// Bridges.
    Bridge,
}

/// A container's place in a network.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The network.
    pub network: String,
    /// Its address there.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address there.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Its hardware address there.
    #[serde(default)]
    pub mac: Option<String>,
    /// Other names by which it is found there.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// Something that is mounted.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What.
    #[serde(rename = "type")]
    pub kind: MountType,
    /// The host's path, or the volume's name; a volume without one is the container's own.
    #[serde(default)]
    pub source: Option<String>,
    /// Where, from the root of the container on.
    pub target: String,
    /// Nobody writes through it.
    #[serde(default)]
    pub read_only: bool,
    /// Size of memory in bytes.
    #[serde(default)]
    pub size: Option<u64>,
    /// Mode of memory, octal digits.
    #[serde(default)]
    pub mode: Option<String>,
    /// More options of memory, as `--tmpfs` takes them: `exec`, `uid=1000`, `nr_inodes=1k`.
    #[serde(default)]
    pub options: Vec<String>,
    /// An empty volume does not get what the image has at its place.
    #[serde(default)]
    pub no_copy: bool,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// A directory or file of the host.
    Bind,
    /// A volume.
    Volume,
    /// Memory.
    Tmpfs,
}

/// How a container's health is tested; the image's test where nothing is said.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthTest {
    /// Not at all.
    pub disabled: bool,
    /// A line for a shell.
    pub command: Option<String>,
    /// Milliseconds between two tests.
    pub interval_ms: Option<u64>,
    /// Milliseconds that a test may take.
    pub timeout_ms: Option<u64>,
    /// Milliseconds after the start in which failures do not count.
    pub start_period_ms: Option<u64>,
    /// Failures in a row that make it unhealthy.
    pub retries: Option<u32>,
}

/// How much of a container's output is kept.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogLimits {
    /// Bytes of one file.
    pub max_size: Option<u64>,
    /// How many files.
    #[schemars(range(min = 1))]
    pub max_file: Option<u32>,
}

/// When to ask the registry.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PullWhen {
    /// Every time.
    Always,
    /// If the image is not here.
    #[default]
    Missing,
    /// Never.
    Never,
}

/// How to talk to a registry.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Do not insist on HTTPS with a valid certificate.
    pub insecure: bool,
    /// OS/ARCH[/VARIANT] to choose from a multi-platform image; the host's where nothing is said.
    pub platform: Option<String>,
    /// A file of the host with the public key that must have signed the image.
    pub verify_key: Option<String>,
}

/// What was created.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Created {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the user should know.
    pub notices: Vec<String>,
}
