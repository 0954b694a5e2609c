//! How a container looks to people and programs.

use engine::container::record::Record;
use engine::container::state::{Health, Status};
use engine::volumes::{MountKind, MountSpec};
use serde_json::{Value, json};

use crate::image_commands::familiar;
use crate::times::{age, rfc3339};

/// As in the column STATUS of `ps`.
pub fn status(record: &Record) -> String {
    let state = &record.state;
    let up = || state.started_ns.map(age).unwrap_or_default();
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Starting => "Starting".to_owned(),
        Status::Running => match state.health {
            None => format!("Up {}", up()),
            Some(health) => format!("Up {} ({})", up(), health_name(health)),
        },
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Restarting => format!("Restarting ({})", state.exit_code.unwrap_or_default()),
        Status::Exited => format!(
            "Exited ({}) {} ago",
            state.exit_code.unwrap_or_default(),
            state.finished_ns.map(age).unwrap_or_default()
        ),
    }
}

/// As in `ps --filter health=`.
pub fn health_name(health: Health) -> &'static str {
    match health {
        Health::Starting => "health: starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

/// The main process's command line, not longer than a column.
pub fn command(record: &Record, whole: bool) -> String {
    let text = record.spec.plan.process().args.join(" ");
    let text = engine::text::printable(text.as_bytes());
    if whole || text.chars().count() <= 20 {
        return format!("\"{text}\"");
    }
    format!("\"{}…\"", text.chars().take(19).collect::<String>())
}

/// One line of `ps`, with Docker's names.
pub fn line(record: &Record, whole: bool) -> Value {
    json!({
        "ID": record.spec.id.as_str(),
        "Image": familiar(&record.spec.image),
        "Command": command(record, whole),
        "CreatedAt": rfc3339(record.spec.created_ns),
        "RunningFor": format!("{} ago", age(record.spec.created_ns)),
        "State": record.state.status.name(),
        "Status": status(record),
        "Health": record.state.health,
        "Names": record.name,
        "Labels": record.spec.labels,
        "Address": record.state.address,
        "Ports": ports(record),
        "Networks": record.spec.network.networks().collect::<Vec<_>>().join(","),
    })
}

/// Published ports as `ps` shows them.
pub fn ports(record: &Record) -> String {
    // A keeper that was killed could not note their end.
    let live = record.state.ports.iter().filter(|_| record.state.status.is_live());
    live.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// All that is known, with Docker's names where it has one.
pub fn whole(record: &Record) -> Value {
    let (spec, state) = (&record.spec, &record.state);
    let process = spec.plan.process();
    let time = |ns: Option<u64>| ns.map(rfc3339);
    json!({
        "Id": spec.id.as_str(),
        "Name": record.name,
        "Created": rfc3339(spec.created_ns),
        "Image": spec.image_id,
        "State": {
            "Status": state.status.name(),
            "Running": record.is_running(),
            "Paused": state.status == Status::Paused,
            "Restarting": state.status == Status::Restarting,
            "ExitCode": state.exit_code.unwrap_or_default(),
            "Error": state.error.clone().unwrap_or_default(),
            "StartedAt": time(state.started_ns),
            "FinishedAt": time(state.finished_ns),
            "Health": state.health.map(|health| json!({"Status": health})),
            "Pid": state.vmm,
            "KeeperPid": state.keeper,
        },
        "RestartCount": state.restarts,
        "Config": {
            "Image": familiar(&spec.image),
            "Hostname": spec.plan.hostname(),
            "Cmd": process.args,
            "Env": process.env,
            "WorkingDir": process.cwd,
            "User": process.user,
            "Tty": process.terminal.is_some(),
            "OpenStdin": process.stdin,
            "Labels": spec.labels,
            "StopSignal": spec.plan.stop_signal,
            "Healthcheck": spec.health,
        },
        "HostConfig": {
            "AutoRemove": spec.lifetime.remove,
            "RestartPolicy": spec.lifetime.restart,
            "StopTimeout": spec.lifetime.stop_timeout,
            "Ttl": spec.lifetime.ttl,
            "MemoryMiB": spec.machine.memory_mib,
            "Cpus": spec.machine.vcpus,
            "Resources": spec.resources,
            "NetworkMode": spec.network,
            "ReadonlyRootfs": !spec.plan.writable(),
            "LogConfig": spec.log,
        },
        "Mounts": spec.mounts.iter().map(mount).collect::<Vec<_>>(),
        "NetworkSettings": {"IPAddress": state.address, "MacAddress": state.mac, "Ports": state.ports},
        "Paths": {"Data": record.data, "Run": record.run, "Log": record.log()},
    })
}

/// One mount, as `inspect` shows it.
fn mount(mount: &MountSpec) -> Value {
    let (kind, name, source) = match &mount.kind {
        MountKind::Bind { source } => ("bind", None, Some(source)),
        MountKind::Volume { name, .. } => ("volume", Some(name), None),
        MountKind::Tmpfs { .. } => ("tmpfs", None, None),
        MountKind::Secrets { .. } => ("secret", None, None),
    };
    json!({"Type": kind, "Name": name, "Source": source, "Destination": mount.target, "RW": !mount.read_only})
}
