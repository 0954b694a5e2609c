//! The options about what a container may take of its host.

use anyhow::{Context as _, ensure};
use clap::Args;
use engine::resources::rates::{DeviceRate, DeviceRates, RateError, parse_network};
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
    /// Bytes a second that its disks give, for example 10mb; 0 for no limit
    #[arg(long, value_name = "[DEVICE:]RATE")]
    pub device_read_bps: Vec<String>,
    /// Bytes a second that its disks take
    #[arg(long, value_name = "[DEVICE:]RATE")]
    pub device_write_bps: Vec<String>,
    /// Reads a second
    #[arg(long, value_name = "[DEVICE:]RATE")]
    pub device_read_iops: Vec<String>,
    /// Writes a second
    #[arg(long, value_name = "[DEVICE:]RATE")]
    pub device_write_iops: Vec<String>,
    /// Bytes (10mb) or bits (100mbit) a second that it sends, and as many that it receives; 0 for no limit
    #[arg(long, value_name = "RATE")]
    pub network_rate: Option<String>,
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
            rates: self.rates()?,
        };
        spec.check()?;
        Ok(spec)
    }

    fn rates(&self) -> anyhow::Result<DeviceRates> {
        let bytes = |texts: &[String], option| all(texts, option, DeviceRate::bytes);
        let operations = |texts: &[String], option| all(texts, option, DeviceRate::operations);
        Ok(DeviceRates {
            read_bps: bytes(&self.device_read_bps, "--device-read-bps")?,
            write_bps: bytes(&self.device_write_bps, "--device-write-bps")?,
            read_iops: operations(&self.device_read_iops, "--device-read-iops")?,
            write_iops: operations(&self.device_write_iops, "--device-write-iops")?,
            network: self.network_rate.as_deref().map(parse_network).transpose()?,
        })
    }
}

fn all(
    texts: &[String],
    option: &'static str,
    parse: impl Fn(&str) -> Result<DeviceRate, RateError>,
) -> anyhow::Result<Vec<DeviceRate>> {
    texts.iter().map(|text| parse(text).context(option)).collect()
}
