//! The system as a whole.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::convert::rfc3339;

/// The server answers.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct HealthView {
    /// `ok`
    pub status: String,
}

/// Versions.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Version {
    /// Of lighter.
    pub version: String,
    /// Of the API.
    pub api: String,
    /// Of the protocol with agents.
    pub agent_protocol: u8,
}

/// Something that happened.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Event {
    /// When, RFC 3339.
    pub time: String,
    /// To what kind of thing: `container`, `network`, `volume`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What: `create`, `start`, `die`, ...
    pub action: String,
    /// To which.
    pub id: String,
    /// Its name.
    pub name: String,
    /// More, by name.
    pub attributes: BTreeMap<String, String>,
    /// When, in ns since 1970.
    pub time_ns: u64,
}

impl From<&engine::events::Event> for Event {
    fn from(event: &engine::events::Event) -> Self {
        Self {
            time: rfc3339(event.time_ns),
            kind: event.kind.clone(),
            action: event.action.clone(),
            id: event.id.clone(),
            name: event.name.clone(),
            attributes: event.attributes.clone(),
            time_ns: event.time_ns,
        }
    }
}

/// What takes disk space.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct DiskUsage {
    /// Images, layers and root filesystems.
    pub images: Value,
    /// Templates.
    pub templates: Value,
}

/// What was removed because nothing needs it.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct SystemPruned {
    /// IDs of containers.
    pub containers: Vec<String>,
    /// Files of images and templates.
    pub files: u64,
    /// Bytes of disk space given back.
    pub bytes: u64,
    /// The store was in use, so nothing of it was removed.
    pub deferred: bool,
}

/// What this host has and lacks.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Doctor {
    /// Each finding.
    pub checks: Value,
}

/// A comparison of a VM with a container.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The image.
    pub image: String,
    /// What to run in it.
    #[serde(default)]
    pub command: Vec<String>,
    /// Starts of each kind.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    pub runs: Option<usize>,
    /// Less exact, within 90 seconds.
    #[serde(default)]
    pub quick: bool,
    /// Measure only these: start, size, speed, isolation, portability.
    #[serde(default)]
    pub only: Vec<String>,
    /// Compare only these; all that this host can run where nothing is said.
    #[serde(default)]
    pub isolation: Vec<super::IsolationKind>,
    /// End with what there is after so many seconds.
    #[serde(default)]
    #[schemars(range(min = 1, max = 3600))]
    pub limit: Option<u64>,
}
