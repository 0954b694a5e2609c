//! The options about what a container may take of its host.

use anyhow::ensure;
use clap::Args;
use engine::resources::{PERIOD_US, Quota, ResourceSpec};

/// Options of `run`, `create` and `update`, beside `--cpus` and `--memory`.
#[derive(Args, Default)]
pub struct ResourceArgs {
    /// Weight of its processor time against others', 2 to 262144; 1024 is the default
    #[arg(short, long, value_name = "WEIGHT")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_quota: Option<u64>,
    /// Length of a period in microseconds [default: 100000]
    #[arg(long, value_name = "MICROSECONDS", requires = "cpu_quota")]
    pub cpu_period: Option<u64>,
    /// CPUs of the host that it may use, for example 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
}

impl ResourceArgs {
    /// For the engine; `cpus` and `memory` (bytes for the whole machine) where the user gave them.
    pub fn spec(&self, cpus: Option<&str>, memory: Option<u64>) -> anyhow::Result<ResourceSpec> {
        ensure!(
            cpus.is_none() || self.cpu_quota.is_none(),
            "--cpus and --cpu-quota exclude each other: both say how much processor time there is"
        );
        let millis = cpus.and_then(|text| text.parse::<f64>().ok()).map(|cpus| (cpus * 1000.0) as u64);
        let quota = self.cpu_quota.map(|quota| Quota::new(quota, self.cpu_period.unwrap_or(PERIOD_US)));
        let spec = ResourceSpec {
            quota: quota.transpose()?.or(millis.map(Quota::of_millis)),
            shares: self.cpu_shares,
            cpuset: self.cpuset_cpus.clone(),
            memory,
        };
        spec.check()?;
        Ok(spec)
    }
}
