//! `/logger` and `/metrics`.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// What is logged: this and what matters more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs, reason = "levels as everywhere")]
pub enum Level {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl Level {
    /// The level called `name`, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "off" => Level::Off,
            "error" => Level::Error,
            "warn" | "warning" => Level::Warn,
            "info" => Level::Info,
            "debug" => Level::Debug,
            "trace" => Level::Trace,
            _ => return None,
        })
    }

    /// As it stands in a log.
    pub fn name(self) -> &'static str {
        ["OFF", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"][self as usize]
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Level::parse(&name).ok_or_else(|| D::Error::custom("Invalid LevelFilter"))
    }
}

/// `PUT /logger`: what is not there stays.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// File or FIFO; standard output without it.
    pub log_path: Option<String>,
    /// What is logged.
    pub level: Option<Level>,
    /// With the level in each line.
    pub show_level: Option<bool>,
    /// With the place in the source in each line.
    pub show_log_origin: Option<bool>,
    /// Only lines from here.
    pub module: Option<String>,
}

/// `PUT /metrics`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// File or FIFO.
    pub metrics_path: String,
    /// With the VM's ID in each line.
    #[serde(default)]
    pub emit_id: bool,
    /// Written into each line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}
