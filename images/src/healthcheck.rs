//! How an image wants its health to be tested: Docker's `HEALTHCHECK`, which the OCI specification does not have.

use serde::Deserialize;

/// As in the `Healthcheck` of an image's configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` with a program and its arguments, or `CMD-SHELL` with a line for a shell.
    pub test: Vec<String>,
    /// Nanoseconds between two tests; 0 is the default, as for the others.
    pub interval: u64,
    /// Nanoseconds that one may take.
    pub timeout: u64,
    /// Nanoseconds after the start in which failures do not count.
    pub start_period: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

impl Healthcheck {
    /// That of the image with this configuration. One that makes no sense is none: the container runs without it.
    pub fn of(config: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Configuration {
            config: Option<Process>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Process {
            healthcheck: Option<Healthcheck>,
        }
        serde_json::from_slice::<Configuration>(config).ok()?.config?.healthcheck
    }

    /// What runs; `None` where there is nothing to test.
    pub fn command(&self) -> Option<Vec<String>> {
        match self.test.split_first()? {
            (kind, [_, ..]) if kind == "CMD" => Some(self.test[1..].to_vec()),
            (kind, [line]) if kind == "CMD-SHELL" => {
                Some(["/bin/sh", "-c", line].map(str::to_owned).to_vec())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_test_is_understood() {
        let of = |text: &str| Healthcheck::of(format!(r#"{{"config":{{"Healthcheck":{text}}}}}"#).as_bytes());
        let curl =
            of(r#"{"Test":["CMD","curl","-f","localhost"],"Interval":5000000000,"Retries":2}"#).unwrap();
        assert_eq!(curl.command().unwrap(), ["curl", "-f", "localhost"]);
        assert_eq!((curl.interval, curl.timeout, curl.retries), (5_000_000_000, 0, 2));
        let shell = of(r#"{"Test":["CMD-SHELL","test -e /ready"]}"#).unwrap();
        assert_eq!(shell.command().unwrap(), ["/bin/sh", "-c", "test -e /ready"]);
        for none in [r#"{"Test":["NONE"]}"#, r#"{"Test":[]}"#, r#"{"Test":["CMD"]}"#, "{}"] {
            assert_eq!(of(none).unwrap().command(), None, "{none}");
        }
        for nonsense in ["null", "7", r#"{"Test":7}"#, r#"{"Interval":-1}"#] {
            assert_eq!(of(nonsense), None, "{nonsense}");
        }
        assert_eq!(Healthcheck::of(b"{}"), None);
    }
}
