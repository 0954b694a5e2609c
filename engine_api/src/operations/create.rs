//! A new container: from JSON to what the engine makes.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use engine::container::health::HealthOptions;
use engine::container::record::{self, Record};
use engine::container::spec::{Lifetime, MachineSpec, RestartPolicy};
use engine::isolation::Isolation;
use engine::log::LogSpec;
use engine::network::port;
use engine::network::spec::{DEFAULT_NETWORK, DnsSpec, Endpoint, MAX_NETWORKS, NetworkSpec};
use engine::network::{NetworkMode, egress};
use engine::plan::environment::EnvironmentOptions;
use engine::plan::{PlanOptions, resources};
use engine::resources::rates::{DeviceRate, DeviceRates, RateError, parse_network};
use engine::resources::{Quota, ResourceSpec};
use engine::run::{RunOptions, Watcher};
use engine::trace::Trace;
use engine::verbs;
use engine::volumes::{MountSpec, parse, secret};
use engine::{GuestLimits, TerminalSize};
use images::pull::{PullOptions, PullPolicy};
use images::signature::PublicKey;
use images::{ImageSource, RegistryOptions, Silent};
use sha2::{Digest as _, Sha256};

use super::containers;
use crate::call::{Call, Input};
use crate::exclusive::Key;
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::tenant::Caller;
use crate::types::{
    CreateContainer, Created, IsolationKind, Mount, MountType, Network, NetworkMode as Mode, PullWhen, Rates,
    Registry,
};

/// Label that keeps the idempotency key of a container.
const KEY_LABEL: &str = "lighter.idempotency-key";
/// Beginning of labels that are ours.
const OWN_LABELS: &str = "lighter.";
/// Most names and addresses of one kind.
const MAX_ENTRIES: usize = 256;

/// Makes the container.
pub fn create(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: CreateContainer = call.json()?;
    let mut options = options(&call.caller, &wanted)?;
    let key = call.header("idempotency-key").map(|key| digest(key.as_bytes()));
    let _taken = match &key {
        None => None,
        Some(key) => {
            let taken = Key::take(call.dirs(), key)?;
            let Input::Whole(body) = &call.input else { return Err(Problem::invalid("there is no body")) };
            // With the container, so that neither can be there without the other, whatever ends.
            let value = format!("{key}:{}", digest(body));
            if let Some(earlier) = earlier(call, key) {
                return match earlier.spec.labels.get(KEY_LABEL) == Some(&value) {
                    true => {
                        Ok(Reply::json(&created(&earlier, Vec::new()))?.with("idempotent-replayed", "true"))
                    }
                    false => Err(Problem::new(
                        Kind::KEY_REUSED,
                        "another container was created with this idempotency key: use a new one",
                    )),
                };
            }
            options.labels.insert(KEY_LABEL.to_owned(), value);
            Some(taken)
        }
    };
    call.caller.disk_left()?;
    let notices = Mutex::new(Vec::new());
    let notice =
        |text: &str| notices.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(text.to_owned());
    let record = make(call, &options, wanted.start, &notice)?;
    let notices = notices.into_inner().unwrap_or_default();
    let id = record.spec.id.as_str();
    Ok(Reply::json_with(201, &created(&record, notices))?
        .with("location", &format!("/v1/containers/{id}"))
        .with("etag", &containers::etag(&record)))
}

fn created(record: &Record, notices: Vec<String>) -> Created {
    Created { id: record.spec.id.as_str().to_owned(), name: record.name.clone(), notices }
}

fn make(call: &Call, options: &RunOptions, start: bool, notice: &dyn Fn(&str)) -> Result<Record, Problem> {
    let dirs = call.dirs();
    let watcher = Watcher { progress: &Silent, ready: &|| (), notice };
    let one = (options.machine.vcpus, options.machine.memory_mib);
    let made = || {
        let made = engine::run::make(dirs, options, &watcher, &mut Trace::start())?;
        let (made, _signals) = made.map_err(|_| Problem::new(Kind::HOST, "the start was interrupted"))?;
        let id = made.id().clone();
        match start {
            false => made.keep(dirs)?,
            true => {
                let mut link = made.start(dirs, &[])?;
                verbs::wait_until_started(&record::placeholder(dirs, &id)?, &mut link, notice)?;
            }
        }
        // One that ended at once and was to be removed is gone already.
        Ok(record::read(dirs, id.as_str()).or_else(|_| record::placeholder(dirs, &id))?)
    };
    match start {
        true => call.caller.starting(&[one], made),
        false => made(),
    }
}

/// The container that an earlier request with this key made.
fn earlier(call: &Call, key: &str) -> Option<Arc<Record>> {
    let has = |record: &Arc<Record>| {
        record
            .spec
            .labels
            .get(KEY_LABEL)
            .and_then(|label| label.split_once(':'))
            .is_some_and(|(of, _)| of == key)
    };
    call.containers().into_iter().find(has)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn invalid(error: impl Error) -> Problem {
    Problem::of(Kind::INVALID, &error)
}

/// Where an image comes from; paths of the host only for those who may name them.
pub fn source(caller: &Caller, image: &str) -> Result<ImageSource, Problem> {
    let source: ImageSource = image.parse().map_err(invalid)?;
    if source.path().is_some() {
        caller.host_path("the image")?;
    }
    Ok(source)
}

/// How to fetch it.
pub fn pull_options(caller: &Caller, registry: &Registry, when: PullWhen) -> Result<PullOptions, Problem> {
    let mut options = PullOptions {
        policy: match when {
            PullWhen::Always => PullPolicy::Always,
            PullWhen::Missing => PullPolicy::Missing,
            PullWhen::Never => PullPolicy::Never,
        },
        registry: registry_options(registry.insecure),
        ..PullOptions::default()
    };
    if let Some(path) = &registry.verify_key {
        caller.host_path("verify_key")?;
        options.signed_by = Some(PublicKey::open(path.as_ref()).map_err(invalid)?);
    }
    if let Some(platform) = &registry.platform {
        options.platform = platform.parse().map_err(invalid)?;
    }
    Ok(options)
}

/// How to talk to a registry.
pub fn registry_options(insecure: bool) -> RegistryOptions {
    RegistryOptions { tls_verify: !insecure, ..RegistryOptions::default() }
}

/// A container's memory.
pub fn memory(mib: u32) -> Result<u32, Problem> {
    resources::parse_memory(&format!("{mib}m")).map_err(invalid)
}

/// For the engine.
pub fn limits(rates: &Rates, cpus: Option<f64>, memory_mib: Option<u32>) -> Result<ResourceSpec, Problem> {
    let all = |texts: &[String], parse: fn(&str) -> Result<DeviceRate, RateError>| {
        texts.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>().map_err(invalid)
    };
    let spec = ResourceSpec {
        quota: cpus.map(|cpus| Quota::of_millis((cpus * 1000.0) as u64)),
        shares: rates.cpu_shares,
        cpuset: rates.cpuset_cpus.clone(),
        memory: memory_mib.map(|mib| u64::from(resources::vm_memory_mib(mib)) << 20),
        rates: DeviceRates {
            read_bps: all(&rates.device_read_bps, DeviceRate::bytes)?,
            write_bps: all(&rates.device_write_bps, DeviceRate::bytes)?,
            read_iops: all(&rates.device_read_iops, DeviceRate::operations)?,
            write_iops: all(&rates.device_write_iops, DeviceRate::operations)?,
            network: rates.network_rate.as_deref().map(parse_network).transpose().map_err(invalid)?,
        },
    };
    spec.check().map_err(invalid)?;
    Ok(spec)
}

fn options(caller: &Caller, wanted: &CreateContainer) -> Result<RunOptions, Problem> {
    let cpus = wanted.cpus.map(|cpus| cpus.to_string());
    let vcpus = cpus.as_deref().map_or(Ok(1), resources::parse_cpus).map_err(invalid)?;
    let memory_mib = wanted.memory_mib.map(memory).transpose()?;
    let rates = limits(&wanted.rates, wanted.cpus, memory_mib)?;
    if wanted.kernel.is_some() || wanted.initrd.is_some() || !wanted.kernel_args.is_empty() {
        caller.host_path("a kernel")?;
    }
    if wanted.no_sandbox {
        caller.owner_only("run a machine that is not confined")?;
    }
    let options = RunOptions {
        image: source(caller, &wanted.image)?,
        pull: pull_options(caller, &wanted.registry, wanted.pull)?,
        plan: plan(wanted)?,
        name: wanted.name.clone(),
        isolation: isolation(caller, wanted, &rates)?,
        machine: MachineSpec {
            memory_mib: memory_mib.unwrap_or(resources::DEFAULT_MEMORY_MIB),
            vcpus,
            kernel: wanted.kernel.as_ref().map(Into::into),
            initrd: wanted.initrd.as_ref().map(Into::into),
            kernel_args: wanted.kernel_args.clone(),
            cold: wanted.cold,
            next_memory_mib: None,
            memory_reclaim: wanted.memory_reclaim.unwrap_or(true),
            no_sandbox: wanted.no_sandbox,
        },
        network: network(caller, &wanted.network)?,
        resources: rates,
        mounts: mounts(caller, wanted)?,
        lifetime: lifetime(wanted)?,
        health: HealthOptions {
            disabled: wanted.health.disabled,
            command: wanted.health.command.clone(),
            interval_ms: wanted.health.interval_ms,
            timeout_ms: wanted.health.timeout_ms,
            start_period_ms: wanted.health.start_period_ms,
            retries: wanted.health.retries,
        },
        labels: wanted.labels.clone(),
        log: log(wanted)?,
    };
    match wanted.labels.keys().find(|name| name.starts_with(OWN_LABELS)) {
        Some(name) => Err(Problem::invalid(format!("the label {name:?} is lighter's: use another name"))),
        None => Ok(options),
    }
}

fn plan(wanted: &CreateContainer) -> Result<PlanOptions, Problem> {
    Ok(PlanOptions {
        entrypoint: wanted.entrypoint.clone(),
        command: wanted.command.clone(),
        environment: environment(&wanted.environment)?,
        workdir: wanted.working_dir.clone(),
        user: wanted.user.clone(),
        groups: wanted.groups.clone(),
        hostname: wanted.hostname.clone(),
        interactive: wanted.stdin,
        terminal: wanted.tty.then_some(TerminalSize { rows: 24, columns: 80 }),
        read_only: wanted.read_only,
        privileged: wanted.privileged,
        cap_add: wanted.cap_add.clone(),
        cap_drop: wanted.cap_drop.clone(),
        ulimits: wanted.ulimits.clone(),
        no_new_privileges: wanted.no_new_privileges,
        stop_signal: wanted.stop_signal.clone(),
        limits: GuestLimits {
            pids: wanted.pids_limit.unwrap_or_default(),
            shm_bytes: wanted.shm_bytes.unwrap_or_default(),
        },
    })
}

/// Each variable with its value: the server's own environment is nobody's business.
pub fn environment(
    variables: &std::collections::BTreeMap<String, String>,
) -> Result<EnvironmentOptions, Problem> {
    match variables.keys().find(|name| name.is_empty() || name.contains('=')) {
        Some(name) => Err(Problem::invalid(format!("{name:?} is no name for a variable"))),
        None => Ok(EnvironmentOptions {
            files: Vec::new(),
            variables: variables.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        }),
    }
}

/// Refused is what the isolation cannot hold.
fn isolation(caller: &Caller, wanted: &CreateContainer, rates: &ResourceSpec) -> Result<Isolation, Problem> {
    let isolation = match wanted.isolation {
        IsolationKind::Vm => return Ok(Isolation::Vm),
        IsolationKind::Container => Isolation::Container,
        IsolationKind::Process => Isolation::Process,
    };
    caller.owner_only("run anything without a VM")?;
    let own_kernel = wanted.kernel.is_some() || wanted.initrd.is_some() || !wanted.kernel_args.is_empty();
    let confined = wanted.privileged || !wanted.cap_add.is_empty() || !wanted.cap_drop.is_empty();
    let limited = rates.needs_cgroup() || wanted.pids_limit.is_some() || wanted.shm_bytes.is_some();
    let bare = isolation == Isolation::Process;
    let lacks = |what: &str| {
        Problem::invalid(format!("isolation {} has no {what}: that needs isolation vm", isolation.name()))
    };
    match () {
        () if own_kernel => Err(lacks("kernel of its own")),
        () if rates.rates != DeviceRates::default() => Err(lacks("devices of its own")),
        () if bare && limited => Err(lacks("limits")),
        () if bare && confined => Err(lacks("capabilities of its own")),
        () => Ok(isolation),
    }
}

fn network(caller: &Caller, wanted: &Network) -> Result<NetworkSpec, Problem> {
    if wanted.mode != Mode::Bridge && !wanted.endpoints.is_empty() {
        return Err(Problem::invalid("network.endpoints go with network.mode bridge only"));
    }
    let mode = match wanted.mode {
        Mode::Auto => NetworkMode::Auto,
        Mode::None => NetworkMode::None,
        Mode::User => NetworkMode::User,
        Mode::Bridge if wanted.endpoints.is_empty() => NetworkMode::bridge(DEFAULT_NETWORK),
        Mode::Bridge => NetworkMode::Bridges(endpoints(wanted)?),
    };
    let mut publish = Vec::new();
    for text in &wanted.publish {
        publish.extend(port::parse(text).map_err(invalid)?);
    }
    let published = !publish.is_empty() || wanted.publish_all;
    if published {
        caller.host_port()?;
        if mode == NetworkMode::None {
            return Err(Problem::invalid("network.publish needs a network, but network.mode is none"));
        }
    }
    let most = [publish.len(), wanted.hosts.len(), wanted.dns_search.len(), wanted.dns_options.len()];
    if publish.len() > port::MAX_PUBLISHED
        || most.into_iter().any(|count| count > MAX_ENTRIES.max(port::MAX_PUBLISHED))
        || wanted.egress_allow.len() > egress::MAX_RULES
    {
        return Err(Problem::invalid("network has more entries of one kind than are possible"));
    }
    let words = wanted.dns_search.iter().chain(&wanted.dns_options).chain(wanted.hosts.keys());
    if let Some(text) = words.into_iter().find(|text| !is_word(text)) {
        return Err(Problem::invalid(format!("network: {text:?} is empty or has spaces")));
    }
    let host = |(name, address): (&String, &String)| match address.as_str() {
        "host-gateway" => Ok((address.clone(), name.clone())),
        plain => match plain.parse::<std::net::IpAddr>() {
            Ok(plain) => Ok((plain.to_string(), name.clone())),
            Err(_) => Err(Problem::invalid(format!("network.hosts: {plain:?} is no address"))),
        },
    };
    let rules = wanted.egress_allow.iter().map(|text| text.parse().map_err(invalid));
    let rules: Vec<egress::EgressRule> = rules.collect::<Result<_, _>>()?;
    Ok(NetworkSpec {
        mode,
        publish,
        publish_all: wanted.publish_all,
        exposed: Vec::new(),
        dns: DnsSpec {
            servers: wanted.dns.clone(),
            search: wanted.dns_search.clone(),
            options: wanted.dns_options.clone(),
        },
        extra_hosts: wanted.hosts.iter().map(host).collect::<Result<_, _>>()?,
        egress: (!rules.is_empty()).then_some(rules),
    })
}

fn endpoints(wanted: &Network) -> Result<Vec<Endpoint>, Problem> {
    if wanted.endpoints.len() > MAX_NETWORKS {
        return Err(Problem::invalid(format!("network.endpoints: at most {MAX_NETWORKS} are possible")));
    }
    let mut all: Vec<Endpoint> = Vec::new();
    for one in &wanted.endpoints {
        if all.iter().any(|other| other.network == one.network) {
            return Err(Problem::invalid(format!("network.endpoints: {:?} is there twice", one.network)));
        }
        if let Some(alias) = one.aliases.iter().find(|alias| !is_word(alias) || alias.len() > 253) {
            return Err(Problem::invalid(format!("network.endpoints: {alias:?} is no name")));
        }
        let mac = one.mac.as_deref().map(str::parse).transpose();
        all.push(Endpoint {
            network: one.network.clone(),
            ipv4: one.ip,
            ipv6: one.ip6,
            mac: mac.map_err(|why: String| Problem::invalid(why))?,
            aliases: one.aliases.clone(),
        });
    }
    Ok(all)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn mounts(caller: &Caller, wanted: &CreateContainer) -> Result<Vec<MountSpec>, Problem> {
    let mut mounts = wanted.mounts.iter().map(|one| mount(caller, one)).collect::<Result<Vec<_>, _>>()?;
    if !wanted.secrets.is_empty() {
        caller.host_path("a secret")?;
        if wanted.isolation != IsolationKind::Vm {
            return Err(Problem::invalid(
                "secrets need isolation vm: nothing else keeps them in memory alone",
            ));
        }
        if let Some((name, path)) = wanted.secrets.iter().find(|(_, path)| !path.starts_with('/')) {
            return Err(Problem::invalid(format!(
                "secrets.{name}: {path:?} is no path from the host's root on"
            )));
        }
        let words: Vec<String> = wanted.secrets.iter().map(|(name, path)| format!("{name}={path}")).collect();
        mounts.extend(secret::parse(&words)?);
    }
    Ok(mounts)
}

fn mount(caller: &Caller, wanted: &Mount) -> Result<MountSpec, Problem> {
    let bad = |why: &str| Problem::invalid(format!("the mount on {:?} {why}", wanted.target));
    let memory = wanted.size.is_some() || wanted.mode.is_some() || !wanted.options.is_empty();
    match (wanted.kind, &wanted.source) {
        (MountType::Bind, None) => return Err(bad("needs the source that it is to show")),
        (MountType::Bind, Some(path)) => {
            caller.host_path("a mount")?;
            if !path.starts_with('/') || path.contains('\0') {
                return Err(bad("has a source that is no path from the host's root on"));
            }
        }
        (MountType::Tmpfs, Some(_)) => return Err(bad("is memory, which has no source")),
        _ => {}
    }
    if memory && wanted.kind != MountType::Tmpfs {
        return Err(bad("has a size, mode or options, which only memory has"));
    }
    if wanted.no_copy && wanted.kind != MountType::Volume {
        return Err(bad("has no_copy, which only a volume has"));
    }
    let target = parse::target(&wanted.target).map_err(|why| bad(&why))?;
    let kind = match wanted.kind {
        MountType::Bind => {
            engine::volumes::MountKind::Bind { source: wanted.source.clone().unwrap_or_default().into() }
        }
        MountType::Volume => {
            let name = wanted.source.clone().unwrap_or_default();
            engine::volumes::MountKind::Volume { anonymous: name.is_empty(), name, copy: !wanted.no_copy }
        }
        MountType::Tmpfs => {
            let size = wanted.size.map(|size| format!("size={size}"));
            let mode = wanted.mode.as_ref().map(|mode| format!("mode={mode}"));
            let words: Vec<String> =
                size.into_iter().chain(mode).chain(wanted.options.iter().cloned()).collect();
            // Its target is put in afterwards: it may have colons.
            return Ok(MountSpec {
                target,
                ..parse::tmpfs(&format!(
                    "/x:{}{}",
                    words.join(","),
                    if wanted.read_only { ",ro" } else { "" }
                ))?
            });
        }
    };
    Ok(MountSpec { kind, target, read_only: wanted.read_only })
}

fn lifetime(wanted: &CreateContainer) -> Result<Lifetime, Problem> {
    let restart: RestartPolicy = wanted.restart.as_deref().unwrap_or_default().parse().map_err(invalid)?;
    if wanted.auto_remove && restart != RestartPolicy::No {
        return Err(Problem::invalid("auto_remove and restart exclude each other"));
    }
    Ok(Lifetime {
        remove: wanted.auto_remove,
        restart,
        stop_timeout: wanted.stop_timeout,
        ttl: wanted.ttl,
        stdin_once: wanted.stdin_once,
    })
}

fn log(wanted: &CreateContainer) -> Result<LogSpec, Problem> {
    let default = LogSpec::default();
    match wanted.log.max_file {
        Some(0) => Err(Problem::invalid("log.max_file is a number from 1 on")),
        count => Ok(LogSpec {
            max_size: wanted.log.max_size.unwrap_or(default.max_size),
            max_file: count.unwrap_or(default.max_file),
        }),
    }
}
