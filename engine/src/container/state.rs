//! What has become of a container. Written by whoever holds its locks.

use serde::{Deserialize, Serialize};

/// How far a container is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    #[default]
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

impl Status {
    /// As in `ps --filter status=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        }
    }

    /// It has a keeper.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Created | Self::Exited)
    }
}

/// How well a container is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not known yet.
    Starting,
    /// The last test succeeded.
    Healthy,
    /// Too many tests in a row failed.
    Unhealthy,
}

/// The state of a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct State {
    /// How far it is.
    pub status: Status,
    /// Exit code of the last end.
    pub exit_code: Option<u8>,
    /// Why it ended, where the exit code does not say.
    pub error: Option<String>,
    /// When its process last started, in ns since 1970.
    pub started_ns: Option<u64>,
    /// When it last ended.
    pub finished_ns: Option<u64>,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// Somebody stopped it, so it is not started again by itself.
    pub stopped: bool,
    /// The keeper's process ID.
    pub keeper: Option<u32>,
    /// The VMM's process ID.
    pub vmm: Option<u32>,
    /// What the last health tests say.
    pub health: Option<Health>,
    /// Address on its network.
    pub address: Option<std::net::Ipv4Addr>,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub ports: Vec<crate::network::port::Published>,
    /// MAC address on its network.
    pub mac: Option<String>,
}

/// Now, in ns since 1970.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
