//! The options of `run` and `create` about the begin and the end of a container.

use anyhow::{Context as _, bail};
use clap::Args;
use engine::container::health::HealthOptions;
use engine::container::spec::Lifetime;
use engine::log::LogSpec;
use engine::plan::resources;

use crate::times::duration;

/// When a container begins, ends and begins again.
#[derive(Args)]
pub struct LifetimeArgs {
    /// Start it again when it ends: no, on-failure[:TIMES], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// Signal that asks it to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds until it is killed when it does not end [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u64>,
    /// Rented time: it is stopped when this is over, for example 3h
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<String>,
    /// Test its health with this command, in a shell
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between two tests [default: the image's, or 30s]
    #[arg(long, value_name = "DURATION")]
    pub health_interval: Option<String>,
    /// Time that a test may take [default: the image's, or 30s]
    #[arg(long, value_name = "DURATION")]
    pub health_timeout: Option<String>,
    /// Time after the start in which failures do not count [default: the image's, or 0s]
    #[arg(long, value_name = "DURATION")]
    pub health_start_period: Option<String>,
    /// Failures in a row that make it unhealthy [default: the image's, or 3]
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Do not test its health, whatever the image says
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
    /// Note about the container
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// How much of its output is kept: max-size=SIZE, max-file=N
    #[arg(long, value_name = "OPTION=VALUE")]
    pub log_opt: Vec<String>,
}

impl LifetimeArgs {
    /// For the engine; what other options say is left out.
    pub fn lifetime(&self) -> anyhow::Result<Lifetime> {
        Ok(Lifetime {
            restart: self.restart.parse()?,
            stop_timeout: self.stop_timeout,
            ttl: self.ttl.as_deref().map(duration).transpose().context("--ttl")?.map(|ttl| ttl.as_secs()),
            ..Lifetime::default()
        })
    }

    /// For the engine.
    pub fn health(&self) -> anyhow::Result<HealthOptions> {
        let milliseconds = |option: &'static str, text: &Option<String>| {
            let duration = text.as_deref().map(duration).transpose().context(option)?;
            anyhow::Ok(duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
        };
        Ok(HealthOptions {
            disabled: self.no_healthcheck,
            command: self.health_cmd.clone(),
            interval_ms: milliseconds("--health-interval", &self.health_interval)?,
            timeout_ms: milliseconds("--health-timeout", &self.health_timeout)?,
            start_period_ms: milliseconds("--health-start-period", &self.health_start_period)?,
            retries: self.health_retries,
        })
    }

    /// For the engine.
    pub fn log(&self) -> anyhow::Result<LogSpec> {
        let mut spec = LogSpec::default();
        for option in &self.log_opt {
            match option.split_once('=') {
                Some(("max-size", size)) => {
                    spec.max_size = resources::parse_size(size).with_context(|| {
                        format!("--log-opt max-size={size:?} is no size: write for example 10m")
                    })?;
                }
                Some(("max-file", count)) => {
                    let count = count.parse::<u32>().ok().filter(|count| *count > 0);
                    spec.max_file = count
                        .with_context(|| format!("--log-opt {option:?}: max-file is a number from 1 on"))?;
                }
                _ => bail!("--log-opt {option:?} is unknown: lighter has max-size=SIZE and max-file=N"),
            }
        }
        Ok(spec)
    }
}
