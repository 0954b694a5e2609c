//! How a container's health is tested: what the user says, else what the image says, else Docker's defaults.

use images::healthcheck::Healthcheck;

use super::spec::HealthSpec;

const DEFAULT_INTERVAL_MS: u64 = 30_000;
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const DEFAULT_RETRIES: u32 = 3;
const NS_PER_MS: u64 = 1_000_000;

/// `--health-cmd` and its companions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthOptions {
    /// `--no-healthcheck`
    pub disabled: bool,
    /// `--health-cmd`, a line for a shell.
    pub command: Option<String>,
    /// `--health-interval`, in milliseconds.
    pub interval_ms: Option<u64>,
    /// `--health-timeout`, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// `--health-start-period`, in milliseconds.
    pub start_period_ms: Option<u64>,
    /// `--health-retries`
    pub retries: Option<u32>,
}

impl HealthOptions {
    /// What is tested in a container of an image that says `image`; nothing where nobody says what to run.
    pub fn spec(&self, image: Option<&Healthcheck>) -> Option<HealthSpec> {
        let line = |line: &String| ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        let command = self.command.as_ref().map(line).or_else(|| image?.command());
        let milliseconds = |of: fn(&Healthcheck) -> u64| {
            let ns = image.map_or(0, of);
            (ns > 0).then_some((ns / NS_PER_MS).max(1))
        };
        let retries = image.map(|image| image.retries).filter(|retries| *retries > 0);
        let interval = self.interval_ms.or(milliseconds(|image| image.interval));
        let timeout = self.timeout_ms.or(milliseconds(|image| image.timeout));
        let start_period = self.start_period_ms.or(milliseconds(|image| image.start_period));
        Some(HealthSpec {
            command: command.filter(|_| !self.disabled)?,
            interval_ms: interval.unwrap_or(DEFAULT_INTERVAL_MS).max(1),
            timeout_ms: timeout.unwrap_or(DEFAULT_TIMEOUT_MS).max(1),
            start_period_ms: start_period.unwrap_or(0),
            retries: self.retries.or(retries).unwrap_or(DEFAULT_RETRIES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_comes_before_the_image_and_that_before_the_defaults() {
        let image = Healthcheck {
            test: vec!["CMD".into(), "probe".into()],
            interval: 5_000_000_000,
            timeout: 1,
            start_period: 0,
            retries: 7,
        };
        let none = HealthOptions::default();
        let from_image = none.spec(Some(&image)).unwrap();
        assert_eq!(from_image.command, ["probe"]);
        assert_eq!((from_image.interval_ms, from_image.timeout_ms, from_image.retries), (5000, 1, 7));
        let user = HealthOptions { command: Some("true".into()), retries: Some(1), ..none.clone() };
        let both = user.spec(Some(&image)).unwrap();
        assert_eq!((both.command[2].as_str(), both.interval_ms, both.retries), ("true", 5000, 1));
        let alone = user.spec(None).unwrap();
        assert_eq!((alone.interval_ms, alone.timeout_ms, alone.start_period_ms), (30_000, 30_000, 0));
        assert_eq!(none.spec(None), None);
        assert_eq!(HealthOptions { disabled: true, ..user }.spec(Some(&image)), None);
    }
}
