//! The OCI runtime's `config.json`, from the plan that an agent would get (OCI runtime specification 1.0.2).

use agent_protocol::message::{ContainerPlan, GuestLimits, ProcessPlan};
use agent_protocol::mount::{MountPlan, MountSource};
use serde_json::{Value, json};

use crate::names::ROOT;
use crate::{WardenConfig, cgroup, files, idmap, names, seccomp};

/// Kernel interfaces that tell of the host or act on it, hidden as Docker hides them.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// The same, to be read but not written.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Bytes of `/dev/shm` where nobody says otherwise.
const DEFAULT_SHM: u64 = 64 << 20;

/// A user with everything that a process of theirs gets.
#[derive(Debug)]
pub struct Account {
    /// User ID in the container.
    pub uid: u32,
    /// Group ID in the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The whole configuration.
pub fn config(config: &WardenConfig, plan: &ContainerPlan, account: &Account) -> Value {
    let base = idmap::base(&config.id);
    let map = json!([{"containerID": 0, "hostID": base, "size": idmap::COUNT}]);
    let namespaces =
        ["mount", "pid", "network", "ipc", "uts", "user", "cgroup"].map(|kind| json!({"type": kind}));
    let mut linux = json!({
        "namespaces": namespaces,
        "uidMappings": map,
        "gidMappings": map,
        "cgroupsPath": cgroup::path(&config.id),
        "resources": resources(config, plan.limits),
        "rootfsPropagation": "private",
    });
    if !config.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        linux["seccomp"] = seccomp::profile(&plan.process.capabilities);
    }
    json!({
        "ociVersion": "1.0.2",
        "process": process(&plan.process, account),
        "root": {"path": ROOT, "readonly": config.layer.is_none()},
        "hostname": plan.hostname,
        "mounts": mounts(config.privileged, plan),
        "linux": linux,
    })
}

/// `process`, also of an `exec`.
pub fn process(plan: &ProcessPlan, account: &Account) -> Value {
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", account.home));
    }
    // As the agent does it: root has them, another user only keeps them from being gained.
    let sets = if account.uid == 0 { plan.capabilities.clone() } else { Vec::new() };
    let limit = |(name, soft, hard): &(String, u64, u64)| json!({"type": name, "soft": soft, "hard": hard});
    let mut process = json!({
        "terminal": plan.terminal.is_some(),
        "user": {"uid": account.uid, "gid": account.gid, "additionalGids": account.groups, "umask": 0o022},
        "args": plan.args,
        "env": env,
        "cwd": plan.cwd,
        "capabilities": {"bounding": plan.capabilities, "effective": sets, "permitted": sets},
        "rlimits": plan.rlimits.iter().map(limit).collect::<Vec<_>>(),
        "noNewPrivileges": plan.no_new_privs,
    });
    if let Some(size) = plan.terminal {
        process["consoleSize"] = json!({"height": size.rows, "width": size.columns});
    }
    process
}

fn mounts(privileged: bool, plan: &ContainerPlan) -> Value {
    let limits = plan.limits;
    let shm = format!("size={}", if limits.shm_bytes == 0 { DEFAULT_SHM } else { limits.shm_bytes });
    let access = if privileged { "rw" } else { "ro" };
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    mounts.extend(files::NAMES.iter().map(|name| {
        json!({"destination": format!("/etc/{name}"), "type": "bind", "source": files::path(name), "options": ["bind", "rw"]})
    }));
    mounts.extend(plan.mounts.iter().filter_map(volume));
    json!(mounts)
}

/// A mount that the user asked for; none of a disk, which only a VM has.
fn volume(plan: &MountPlan) -> Option<Value> {
    let access = if plan.read_only { "ro" } else { "rw" };
    Some(match &plan.source {
        MountSource::Disk { .. } => return None,
        MountSource::Share(number) => json!({"destination": plan.target, "type": "bind",
            "source": names::share(usize::from(*number)), "options": ["rbind", access]}),
        // Refused before; what they hold must not get into the bundle, which is on a disk.
        MountSource::Secrets(_) => json!({"destination": plan.target, "type": "tmpfs", "source": "tmpfs"}),
        MountSource::Tmpfs { flags, data } => {
            // Flags of mount(2), as the OCI runtime names them.
            let names = [(1, "ro"), (2, "nosuid"), (4, "nodev"), (8, "noexec"), (1024, "noatime")];
            let set = names.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| name);
            let data = data.split(',').filter(|option| !option.is_empty());
            json!({"destination": plan.target, "type": "tmpfs", "source": "tmpfs",
                "options": set.chain([access]).chain(data).collect::<Vec<_>>()})
        }
    })
}

fn resources(config: &WardenConfig, guest: GuestLimits) -> Value {
    let limits = &config.limits;
    // Everything but what runc allows to every container: the nodes of /dev.
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(bytes) = limits.memory {
        resources["memory"] = json!({"limit": bytes});
    }
    let mut cpu = serde_json::Map::new();
    if let Some((quota, period)) = limits.quota {
        cpu.extend([("quota".to_owned(), json!(quota)), ("period".to_owned(), json!(period))]);
    }
    cpu.extend(limits.shares.map(|shares| ("shares".to_owned(), json!(shares))));
    cpu.extend(limits.cpuset.as_ref().map(|list| ("cpus".to_owned(), json!(list))));
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if guest.pids > 0 {
        resources["pids"] = json!({"limit": guest.pids});
    }
    resources
}

#[cfg(test)]
mod tests {
    use agent_protocol::message::{RootPlan, TerminalSize};
    use oci_spec::runtime::Spec;

    use super::*;
    use crate::{Isolation, Limits};

    fn plan() -> ContainerPlan {
        ContainerPlan {
            root: RootPlan { image_device: String::new(), writable_device: None },
            hostname: "barge".into(),
            realtime_ns: 0,
            entropy: [0; 32],
            network: None,
            process: ProcessPlan {
                args: vec!["sh".into()],
                env: vec!["A=1".into()],
                cwd: "/srv".into(),
                user: String::new(),
                additional_groups: Vec::new(),
                terminal: Some(TerminalSize { rows: 24, columns: 80 }),
                stdin: true,
                rlimits: vec![("RLIMIT_NOFILE".into(), 10, 20)],
                capabilities: vec!["CAP_CHOWN".into()],
                no_new_privs: true,
            },
            power_off_at_exit: true,
            mounts: vec![MountPlan { target: "/s".into(), read_only: true, source: MountSource::Share(0) }],
            limits: GuestLimits { pids: 7, shm_bytes: 0 },
        }
    }

    fn warden(privileged: bool) -> WardenConfig {
        WardenConfig {
            isolation: Isolation::Container,
            id: "0123456789ab".into(),
            image: "/i".into(),
            layer: None,
            vsock: "/v".into(),
            control: "/c".into(),
            network: None,
            shares: Vec::new(),
            limits: Limits { memory: Some(1 << 20), quota: Some((1000, 2000)), ..Limits::default() },
            privileged,
        }
    }

    #[test]
    fn it_is_what_the_specification_says_and_confines_everything() {
        let account = Account { uid: 0, gid: 0, groups: vec![0, 10], home: "/root".into() };
        let value = config(&warden(false), &plan(), &account);
        let spec: Spec = serde_json::from_value(value).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 7);
        assert!(
            linux.seccomp().is_some() && linux.masked_paths().is_some() && linux.readonly_paths().is_some()
        );
        assert_eq!(linux.resources().as_ref().unwrap().pids().as_ref().unwrap().limit(), 7);
        let process = spec.process().as_ref().unwrap();
        assert!(process.env().as_ref().unwrap().contains(&"HOME=/root".to_owned()));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    }

    #[test]
    fn a_user_has_no_capabilities_and_a_privileged_container_no_filter() {
        let account = Account { uid: 7, gid: 7, groups: Vec::new(), home: "/".into() };
        let value = config(&warden(true), &plan(), &account);
        assert_eq!(value["process"]["capabilities"]["effective"], json!([]));
        assert!(value["linux"]["seccomp"].is_null());
    }
}
