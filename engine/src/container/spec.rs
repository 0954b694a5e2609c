//! What a container was made to be: everything that it takes to start it, again and again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::id::ContainerId;
use crate::isolation::Isolation;
use crate::log::LogSpec;
use crate::network::NetworkSpec;
use crate::plan::Plan;
use crate::resources::ResourceSpec;
use crate::volumes::MountSpec;

/// Version of the file.
pub const SCHEMA: &str = "lighter.container.v1";

/// A container, as it was created.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ContainerSpec {
    /// [`SCHEMA`]
    pub schema: String,
    /// Its identity.
    pub id: ContainerId,
    /// When it was created, in ns since 1970.
    pub created_ns: u64,
    /// The image's name.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// File name of the image's root filesystem, which the container's directory has a link to.
    pub rootfs: String,
    /// What runs.
    pub plan: Plan,
    /// What keeps it apart from its host.
    #[serde(default)]
    pub isolation: Isolation,
    /// In which machine.
    pub machine: MachineSpec,
    /// Its network.
    pub network: NetworkSpec,
    /// What it may take of its host.
    #[serde(default)]
    pub resources: ResourceSpec,
    /// What it sees of its host.
    #[serde(default)]
    pub mounts: Vec<MountSpec>,
    /// Begin and end.
    pub lifetime: Lifetime,
    /// `--health-cmd` and its companions.
    pub health: Option<HealthSpec>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// How much of its output is kept.
    pub log: LogSpec,
}

/// The machine of a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct MachineSpec {
    /// `--memory`: what the container gets.
    pub memory_mib: u32,
    /// What it gets from its next boot on, where `update` said so while it ran.
    #[serde(default)]
    pub next_memory_mib: Option<u32>,
    /// `--cpus`
    pub vcpus: u8,
    /// `--kernel`
    pub kernel: Option<PathBuf>,
    /// `--initrd`
    pub initrd: Option<PathBuf>,
    /// `--kernel-arg`
    pub kernel_args: Vec<String>,
    /// `--cold`: boot, neither use nor make a template.
    pub cold: bool,
    /// `--memory-reclaim`: the guest gives memory back that it does not use.
    #[serde(default = "on")]
    pub memory_reclaim: bool,
    /// `--no-sandbox`: its VMM runs as whoever starts it, with all that one may do.
    #[serde(default)]
    pub no_sandbox: bool,
}

fn on() -> bool {
    true
}

/// When a container begins and ends.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Lifetime {
    /// `--rm`
    pub remove: bool,
    /// `--restart`
    pub restart: RestartPolicy,
    /// `--stop-timeout`, in seconds.
    pub stop_timeout: Option<u64>,
    /// `--ttl`, in seconds.
    pub ttl: Option<u64>,
    /// The process's stdin ends with the client that has it: `run -i` without `-d`.
    pub stdin_once: bool,
}

/// `--restart`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After a failure, at most so many times; 0 is without a limit.
    OnFailure(u32),
    /// Whenever it ends, until it is stopped.
    Always,
    /// The same; what was stopped stays so when the host comes up again.
    UnlessStopped,
}

/// `--restart` is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--restart {0:?} is unknown: use no, on-failure[:TIMES], always or unless-stopped")]
pub struct RestartPolicyError(String);

impl std::str::FromStr for RestartPolicy {
    type Err = RestartPolicyError;

    fn from_str(text: &str) -> Result<Self, RestartPolicyError> {
        let bad = || RestartPolicyError(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "no" | "" => Ok(Self::No),
                "on-failure" => Ok(Self::OnFailure(0)),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                _ => Err(bad()),
            },
            Some(("on-failure", times)) => times.parse().map(Self::OnFailure).map_err(|_| bad()),
            Some(_) => Err(bad()),
        }
    }
}

impl RestartPolicy {
    /// Whether to start again what ended with `exit_code` after `restarts` restarts.
    pub fn restarts(self, exit_code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(limit) => exit_code != 0 && (limit == 0 || restarts < limit),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

/// How a container's health is found out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HealthSpec {
    /// What runs in the container; healthy if it ends with 0.
    pub command: Vec<String>,
    /// Milliseconds between two runs.
    pub interval_ms: u64,
    /// Milliseconds that one may take.
    pub timeout_ms: u64,
    /// Milliseconds after the start in which failures do not count.
    pub start_period_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::PlanOptions;

    pub(crate) fn example(id: &ContainerId) -> ContainerSpec {
        let options = PlanOptions { command: vec!["true".into()], ..PlanOptions::default() };
        ContainerSpec {
            schema: SCHEMA.into(),
            id: id.clone(),
            created_ns: crate::container::state::now_ns(),
            image: "example".into(),
            image_id: "sha256:0".into(),
            rootfs: "x.erofs".into(),
            plan: Plan::new(&options, "example", &Default::default(), "id").unwrap(),
            isolation: Isolation::Vm,
            machine: MachineSpec {
                memory_mib: 64,
                vcpus: 1,
                kernel: None,
                initrd: None,
                kernel_args: Vec::new(),
                cold: false,
                memory_reclaim: true,
                next_memory_mib: None,
                no_sandbox: false,
            },
            network: NetworkSpec::default(),
            resources: ResourceSpec::default(),
            mounts: Vec::new(),
            lifetime: Lifetime::default(),
            health: None,
            labels: BTreeMap::new(),
            log: LogSpec::default(),
        }
    }

    #[test]
    fn policies_parse_as_dockers_do_and_decide() {
        let parse = |text: &str| text.parse::<RestartPolicy>();
        assert_eq!(parse("on-failure:3").unwrap(), RestartPolicy::OnFailure(3));
        assert_eq!(parse("unless-stopped").unwrap(), RestartPolicy::UnlessStopped);
        for bad in ["never", "always:3", "on-failure:x", "on-failure:-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(!RestartPolicy::OnFailure(3).restarts(0, 0) && !RestartPolicy::OnFailure(3).restarts(1, 3));
        assert!(RestartPolicy::OnFailure(0).restarts(1, 1000) && RestartPolicy::Always.restarts(0, 1000));
    }
}
