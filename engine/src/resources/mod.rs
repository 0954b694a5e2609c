//! What a container may take of its host: limits on its VMM process by a cgroup of its own, and on its devices by the
//! VMM.
//!
//! The guest sees whole vCPUs and its own memory; how much of the host's processors these get, and which, is decided
//! here. Without an option nothing is made.

pub mod cgroup;
mod hierarchy;
pub mod live;
pub mod rates;

use serde::{Deserialize, Serialize};

use self::rates::{DeviceRates, RateError};

/// Length of a period in which a quota counts, in microseconds: the kernel's default.
pub const PERIOD_US: u64 = 100_000;
/// The least that the kernel takes as a quota, in microseconds.
pub const MIN_QUOTA_US: u64 = 1000;
/// Memory that a VMM process gets beside its guest's, in bytes.
pub const VMM_MEMORY: u64 = 64 << 20;

/// Limits as `run` and `update` say them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct ResourceSpec {
    /// `--cpus`, `--cpu-quota` and `--cpu-period`.
    pub quota: Option<Quota>,
    /// `--cpu-shares`: weight against others, 2 to 262144; 1024 where nothing is said.
    pub shares: Option<u64>,
    /// `--cpuset-cpus`, as the kernel writes lists: `0-2,4`.
    pub cpuset: Option<String>,
    /// `--memory` was given: bytes that the VMM process with its guest gets of the host.
    pub memory: Option<u64>,
    /// `--device-read-bps` and its companions, `--network-rate`.
    #[serde(default)]
    pub rates: DeviceRates,
}

/// So much processor time in each period.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// Processor time, in microseconds.
    pub quota_us: u64,
    /// Length of a period, in microseconds.
    pub period_us: u64,
}

/// A limit is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// `--cpu-quota` and `--cpu-period`.
    #[error(
        "--cpu-quota {quota_us} and --cpu-period {period_us}: a quota is at least {MIN_QUOTA_US} µs, a period 1000 to 1000000 µs"
    )]
    Quota {
        /// As given.
        quota_us: u64,
        /// As given.
        period_us: u64,
    },
    /// `--cpu-shares`
    #[error("--cpu-shares {0}: a weight is 2 to 262144")]
    Shares(u64),
    /// `--cpuset-cpus`
    #[error("--cpuset-cpus {0:?} is no list of CPUs: write for example 0-2,4")]
    Cpuset(String),
    /// Of a device.
    #[error(transparent)]
    Rate(#[from] RateError),
}

impl Quota {
    /// The quota of so many thousandths of a CPU.
    pub fn of_millis(millis: u64) -> Self {
        Self { quota_us: (millis * PERIOD_US / 1000).max(MIN_QUOTA_US), period_us: PERIOD_US }
    }

    /// A quota that the kernel takes.
    pub fn new(quota_us: u64, period_us: u64) -> Result<Self, LimitError> {
        match quota_us >= MIN_QUOTA_US && (1000..=1_000_000).contains(&period_us) {
            true => Ok(Self { quota_us, period_us }),
            false => Err(LimitError::Quota { quota_us, period_us }),
        }
    }
}

impl ResourceSpec {
    /// There is something that a cgroup limits.
    pub fn needs_cgroup(&self) -> bool {
        self.limits_cpu() || self.memory.is_some()
    }

    /// There is a limit on processors.
    pub fn limits_cpu(&self) -> bool {
        self.quota.is_some() || self.shares.is_some() || self.cpuset.is_some()
    }

    /// Refuses what the kernel would.
    pub fn check(&self) -> Result<(), LimitError> {
        if let Some(shares) = self.shares.filter(|shares| !(2..=262_144).contains(shares)) {
            return Err(LimitError::Shares(shares));
        }
        match self.cpuset.as_ref().filter(|list| !is_cpu_list(list)) {
            Some(list) => Err(LimitError::Cpuset(list.clone())),
            None => Ok(()),
        }
    }

    /// The same with everything that `change` says.
    #[must_use]
    pub fn updated(&self, change: &Self) -> Self {
        Self {
            quota: change.quota.or(self.quota),
            shares: change.shares.or(self.shares),
            cpuset: change.cpuset.clone().or_else(|| self.cpuset.clone()),
            memory: change.memory.or(self.memory),
            rates: self.rates.updated(&change.rates),
        }
    }
}

fn is_cpu_list(list: &str) -> bool {
    let number = |text: &str| text.parse::<u16>().ok();
    list.split(',').all(|part| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_would_refuse_is_named() {
        assert_eq!(Quota::of_millis(250), Quota { quota_us: 25_000, period_us: 100_000 });
        assert!(Quota::new(999, 100_000).is_err() && Quota::new(1000, 2_000_000).is_err());
        let cpuset = |list: &str| ResourceSpec { cpuset: Some(list.into()), ..Default::default() }.check();
        assert!(cpuset("0").is_ok() && cpuset("0-2,4").is_ok());
        for bad in ["", "x", "2-1", "0,", "-1", "99999"] {
            assert!(cpuset(bad).unwrap_err().to_string().contains("--cpuset-cpus"), "{bad}");
        }
        assert!(ResourceSpec { shares: Some(1), ..Default::default() }.check().is_err());
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let before = ResourceSpec { shares: Some(512), memory: Some(7), ..Default::default() };
        let change = ResourceSpec { shares: Some(1024), ..Default::default() };
        let after = before.updated(&change);
        assert_eq!((after.shares, after.memory), (Some(1024), Some(7)));
        assert!(after.needs_cgroup() && !ResourceSpec::default().needs_cgroup());
    }
}
