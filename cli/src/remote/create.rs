//! `create` and `run -d` over the API: the options of the command line as the API's JSON.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use engine::container::spec::RestartPolicy;
use engine::network::NetworkMode;
use engine::network::port::Publish;
use engine::plan::environment::environment;
use engine::run::RunOptions;
use engine::volumes::{MountKind, MountSpec};
use engine_api::client::Client;
use engine_api::types::{
    CreateContainer, Created, Endpoint, HealthTest, IsolationKind, LogLimits, Mount, MountType, Network,
    NetworkMode as Mode, PullWhen, Rates,
};

use crate::options::isolation;
use crate::output;
use crate::run_options::{self, RunArgs};

/// Makes the container, starts it if wanted, prints its ID.
pub fn create(client: &Client, args: RunArgs, start: bool) -> anyhow::Result<()> {
    ensure!(args.cidfile.is_none(), "--host: --cidfile is written where the container is");
    let body = CreateContainer { start, ..wanted(args)? };
    let created: Created = client.post("/v1/containers", &body)?;
    created.notices.iter().for_each(|text| output::notice(text));
    output::print(&format!("{}\n", created.id))
}

fn wanted(args: RunArgs) -> anyhow::Result<CreateContainer> {
    let (cpus, memory, isolation) = (args.cpus.clone(), args.memory.is_some(), args.isolation);
    let registry = run_options::registry(&args.registry, &args.signature);
    let pull = match args.pull {
        run_options::PullWhen::Always => PullWhen::Always,
        run_options::PullWhen::Missing => PullWhen::Missing,
        run_options::PullWhen::Never => PullWhen::Never,
    };
    let rates = Rates {
        cpu_shares: args.resources.cpu_shares,
        cpuset_cpus: args.resources.cpuset_cpus.clone(),
        device_read_bps: args.resources.device_read_bps.clone(),
        device_write_bps: args.resources.device_write_bps.clone(),
        device_read_iops: args.resources.device_read_iops.clone(),
        device_write_iops: args.resources.device_write_iops.clone(),
        network_rate: args.resources.network_rate.clone(),
    };
    ensure!(args.resources.cpu_quota.is_none(), "--host: say --cpus instead of --cpu-quota");
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
        tty: plan.terminal.is_some(),
        memory_mib: memory.then_some(machine.memory_mib),
        cpus: cpus.as_deref().map(str::parse).transpose().context("--cpus")?,
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
        mounts: options.mounts.iter().map(mount).collect::<anyhow::Result<_>>()?,
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

fn mount(mount: &MountSpec) -> anyhow::Result<Mount> {
    let (kind, source, mut size, mut mode) = match &mount.kind {
        MountKind::Bind { source } => (MountType::Bind, Some(source.display().to_string()), None, None),
        MountKind::Volume { name, .. } => {
            (MountType::Volume, Some(name.clone()).filter(|name| !name.is_empty()), None, None)
        }
        MountKind::Tmpfs { .. } => (MountType::Tmpfs, None, None, None),
        MountKind::Secrets { .. } => bail!("--host: --secret is read where lighter runs: use it there"),
    };
    if let MountKind::Tmpfs { data, .. } = &mount.kind {
        for option in data.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", text)) => {
                    let bytes = engine::plan::resources::parse_size(text);
                    size = Some(bytes.with_context(|| format!("--tmpfs: {text:?} is no size"))?);
                }
                Some(("mode", text)) => mode = Some(text.to_owned()),
                _ => bail!("--host: --tmpfs takes size= and mode= only, not {option:?}"),
            }
        }
    }
    Ok(Mount { kind, source, target: mount.target.clone(), read_only: mount.read_only, size, mode })
}
