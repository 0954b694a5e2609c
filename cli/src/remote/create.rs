//! `create` and `run` over the API: the options of the command line as the API's JSON.

use std::collections::BTreeMap;

use anyhow::Context as _;
use engine::container::spec::RestartPolicy;
use engine::network::NetworkMode;
use engine::network::port::Publish;
use engine::plan::environment::environment;
use engine::resources::PERIOD_US;
use engine::run::RunOptions;
use engine::volumes::{MountKind, MountSpec};
use engine_api::client::Client;
use engine_api::types::{
    CreateContainer, Created, Endpoint, HealthTest, IsolationKind, LogLimits, Mount, MountType, Network,
    NetworkMode as Mode, PullWhen, Rates,
};

use crate::options::isolation;
use crate::options::resources::ResourceArgs;
use crate::output;
use crate::run_options::{self, RunArgs};
use crate::session_commands::write_cidfile;

/// `lighter create`: makes the container and prints its ID.
pub fn create(client: &Client, mut args: RunArgs) -> anyhow::Result<()> {
    let cidfile = args.cidfile.take();
    let made = make(client, args, false)?;
    cidfile.iter().try_for_each(|path| write_cidfile(path, &made.id))?;
    output::print(&format!("{}\n", made.id))
}

/// Makes the container, and starts it if wanted.
pub fn make(client: &Client, args: RunArgs, start: bool) -> anyhow::Result<Created> {
    let body = CreateContainer { start, ..wanted(args)? };
    let created: Created = client.post("/v1/containers", &body)?;
    created.notices.iter().for_each(|text| output::notice(text));
    Ok(created)
}

/// What a container may take of its host.
pub fn rates(args: &ResourceArgs) -> Rates {
    Rates {
        cpu_shares: args.cpu_shares,
        cpuset_cpus: args.cpuset_cpus.clone(),
        device_read_bps: args.device_read_bps.clone(),
        device_write_bps: args.device_write_bps.clone(),
        device_read_iops: args.device_read_iops.clone(),
        device_write_iops: args.device_write_iops.clone(),
        network_rate: args.network_rate.clone(),
    }
}

/// Processor time in CPUs, however it was said.
pub fn cpus(cpus: Option<&str>, args: &ResourceArgs) -> anyhow::Result<Option<f64>> {
    let quota = args.cpu_quota.map(|quota| quota as f64 / args.cpu_period.unwrap_or(PERIOD_US).max(1) as f64);
    Ok(cpus.map(str::parse).transpose().context("--cpus")?.or(quota))
}

fn wanted(args: RunArgs) -> anyhow::Result<CreateContainer> {
    let cpus = cpus(args.cpus.as_deref(), &args.resources)?;
    let (memory, isolation) = (args.memory.is_some(), args.isolation);
    let registry = run_options::registry(&args.registry, &args.signature);
    let pull = match args.pull {
        run_options::PullWhen::Always => PullWhen::Always,
        run_options::PullWhen::Missing => PullWhen::Missing,
        run_options::PullWhen::Never => PullWhen::Never,
    };
    let rates = rates(&args.resources);
    let options = args.run_options()?;
    let path = |path: &std::path::Path| path.display().to_string();
    let (plan, machine, lifetime) = (&options.plan, &options.machine, &options.lifetime);
    Ok(CreateContainer {
        image: options.image.clone().absolute().to_string(),
        name: options.name.clone(),
        command: plan.command.clone(),
        entrypoint: plan.entrypoint.clone(),
        environment: variables(&options)?,
        working_dir: plan.workdir.clone(),
        user: plan.user.clone(),
        groups: plan.groups.clone(),
        hostname: plan.hostname.clone(),
        stdin: plan.interactive,
        stdin_once: lifetime.stdin_once,
        tty: plan.terminal.is_some(),
        memory_mib: memory.then_some(machine.memory_mib),
        cpus,
        rates,
        isolation: match isolation {
            isolation::IsolationKind::Vm => IsolationKind::Vm,
            isolation::IsolationKind::Container => IsolationKind::Container,
            isolation::IsolationKind::Process => IsolationKind::Process,
        },
        kernel: machine.kernel.as_deref().map(path),
        initrd: machine.initrd.as_deref().map(path),
        kernel_args: machine.kernel_args.clone(),
        cold: machine.cold,
        memory_reclaim: Some(machine.memory_reclaim),
        no_sandbox: machine.no_sandbox,
        network: network(&options),
        mounts: options
            .mounts
            .iter()
            .filter_map(|one| mount(one).transpose())
            .collect::<anyhow::Result<_>>()?,
        secrets: secrets(&options.mounts),
        read_only: plan.read_only,
        privileged: plan.privileged,
        cap_add: plan.cap_add.clone(),
        cap_drop: plan.cap_drop.clone(),
        ulimits: plan.ulimits.clone(),
        no_new_privileges: plan.no_new_privileges,
        pids_limit: (plan.limits.pids > 0).then_some(plan.limits.pids),
        shm_bytes: (plan.limits.shm_bytes > 0).then_some(plan.limits.shm_bytes),
        auto_remove: lifetime.remove,
        restart: Some(restart(lifetime.restart)),
        stop_signal: plan.stop_signal.clone(),
        stop_timeout: lifetime.stop_timeout,
        ttl: lifetime.ttl,
        health: HealthTest {
            disabled: options.health.disabled,
            command: options.health.command.clone(),
            interval_ms: options.health.interval_ms,
            timeout_ms: options.health.timeout_ms,
            start_period_ms: options.health.start_period_ms,
            retries: options.health.retries,
        },
        labels: options.labels.clone(),
        log: LogLimits { max_size: Some(options.log.max_size), max_file: Some(options.log.max_file) },
        pull,
        registry,
        start: false,
    })
}

/// Those that the user set; a name alone takes the value that it has here.
fn variables(options: &RunOptions) -> anyhow::Result<BTreeMap<String, String>> {
    let host = |name: &str| std::env::var(name).ok();
    let all = environment(&options.plan.environment, &[], "", false, host)?;
    let pairs = all.iter().filter_map(|pair| pair.split_once('='));
    // What every container gets comes from the server.
    let own = |(name, value): &(&str, &str)| {
        let given =
            options.plan.environment.variables.iter().any(|given| given.split('=').next() == Some(name));
        given || !matches!(*name, "PATH" | "HOSTNAME") || *name == "HOSTNAME" && !value.is_empty()
    };
    Ok(pairs.filter(own).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn restart(policy: RestartPolicy) -> String {
    match policy {
        RestartPolicy::No => "no".to_owned(),
        RestartPolicy::OnFailure(0) => "on-failure".to_owned(),
        RestartPolicy::OnFailure(times) => format!("on-failure:{times}"),
        RestartPolicy::Always => "always".to_owned(),
        RestartPolicy::UnlessStopped => "unless-stopped".to_owned(),
    }
}

fn network(options: &RunOptions) -> Network {
    let spec = &options.network;
    let mut endpoints = Vec::new();
    let mode = match &spec.mode {
        NetworkMode::Auto => Mode::Auto,
        NetworkMode::None => Mode::None,
        NetworkMode::User => Mode::User,
        NetworkMode::Bridges(all) => {
            endpoints.extend(all.iter().map(|one| Endpoint {
                network: one.network.clone(),
                ip: one.ipv4,
                ip6: one.ipv6,
                mac: one.mac.map(|mac| mac.to_string()),
                aliases: one.aliases.clone(),
            }));
            Mode::Bridge
        }
    };
    Network {
        mode,
        endpoints,
        publish: spec.publish.iter().map(publish).collect(),
        publish_all: spec.publish_all,
        dns: spec.dns.servers.clone(),
        dns_search: spec.dns.search.clone(),
        dns_options: spec.dns.options.clone(),
        hosts: spec.extra_hosts.iter().map(|(address, name)| (name.clone(), address.clone())).collect(),
        egress_allow: spec.egress.iter().flatten().map(ToString::to_string).collect(),
    }
}

fn publish(one: &Publish) -> String {
    let address = match one.host_ip {
        None => String::new(),
        Some(std::net::IpAddr::V6(address)) => format!("[{address}]:"),
        Some(address) => format!("{address}:"),
    };
    let host = match one.host_port {
        None if address.is_empty() => String::new(),
        None => ":".to_owned(),
        Some(port) => format!("{port}:"),
    };
    format!("{address}{host}{}/{}", one.guest_port, one.transport)
}

/// A secret is no mount to the API.
fn mount(mount: &MountSpec) -> anyhow::Result<Option<Mount>> {
    let (kind, source, no_copy) = match &mount.kind {
        MountKind::Bind { source } => (MountType::Bind, Some(source.display().to_string()), false),
        MountKind::Volume { name, copy, .. } => {
            (MountType::Volume, Some(name.clone()).filter(|name| !name.is_empty()), !copy)
        }
        MountKind::Tmpfs { .. } => (MountType::Tmpfs, None, false),
        MountKind::Secrets { .. } => return Ok(None),
    };
    let (mut size, mut mode, mut options) = (None, None, Vec::new());
    if let MountKind::Tmpfs { flags, data } = &mount.kind {
        options.extend(flag_words(*flags).map(str::to_owned));
        for option in data.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", text)) if !text.ends_with('%') => {
                    let bytes = engine::plan::resources::parse_size(text);
                    size = Some(bytes.with_context(|| format!("--tmpfs: {text:?} is no size"))?);
                }
                Some(("mode", text)) => mode = Some(text.to_owned()),
                _ => options.push(option.to_owned()),
            }
        }
    }
    let (target, read_only) = (mount.target.clone(), mount.read_only);
    Ok(Some(Mount { kind, source, target, read_only, size, mode, options, no_copy }))
}

/// Flags of mount(2) as `--tmpfs` has them, but for the one that has a member of its own.
fn flag_words(flags: u32) -> impl Iterator<Item = &'static str> {
    const WORDS: [(u32, &str, Option<&str>); 4] = [
        (2, "nosuid", Some("suid")),
        (4, "nodev", Some("dev")),
        (8, "noexec", Some("exec")),
        (1024, "noatime", None),
    ];
    WORDS.into_iter().filter_map(move |(flag, set, unset)| if flags & flag == 0 { unset } else { Some(set) })
}

/// Names and absolute paths.
fn secrets(mounts: &[MountSpec]) -> BTreeMap<String, String> {
    let absolute = |path: &std::path::PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let files = mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Secrets { files } => Some(files),
        _ => None,
    });
    files.flatten().map(|(name, path)| (name.clone(), absolute(path).display().to_string())).collect()
}
