//! What a container's disks and its network may carry: limits that its VMM holds.
//!
//! A disk here is one of the guest's: `/dev/vdb`, the image, and `/dev/vdc`, what the container writes. Which of the
//! host's disks they lie on does not matter.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vmm::config::{BucketConfig, RateLimits, Rates};

use crate::plan::resources::parse_size;
use crate::plan::{IMAGE_DEVICE, WRITABLE_DEVICE};

/// Disks that limits may be about.
pub const DISKS: [&str; 2] = [IMAGE_DEVICE, WRITABLE_DEVICE];

/// A limit is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Neither bytes nor operations a second.
    #[error("{0:?} is no rate: write {form}, 0 for no limit", form = if *.1 { "bytes a second, for example 10mb" } else { "operations a second, for example 200" })]
    Rate(String, bool),
    /// Not a disk of the guest.
    #[error(
        "{0:?} is no disk of the guest, which has {IMAGE_DEVICE} (the image) and {WRITABLE_DEVICE} (what the container \
         writes): in lighter the VMM limits these, whichever disk of the host they lie on; without a device both are \
         limited"
    )]
    Device(String),
    /// `--network-rate`
    #[error(
        "--network-rate {0:?} is no rate: write bytes a second, for example 10mb, or bits, for example 100mbit; 0 for no limit"
    )]
    Network(String),
}

/// `[DEVICE:]RATE`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DeviceRate {
    /// The guest's name of a disk; every disk where nothing is said.
    pub device: Option<String>,
    /// Bytes or operations a second; 0 is no limit.
    pub rate: u64,
}

impl DeviceRate {
    /// Of `--device-read-bps` and its twin.
    pub fn bytes(text: &str) -> Result<Self, RateError> {
        Self::parse(text, true, parse_size)
    }

    /// Of `--device-read-iops` and its twin.
    pub fn operations(text: &str) -> Result<Self, RateError> {
        Self::parse(text, false, |rate| u64::from_str(rate).ok())
    }

    fn parse(text: &str, bytes: bool, number: impl Fn(&str) -> Option<u64>) -> Result<Self, RateError> {
        let (device, rate) =
            text.rsplit_once(':').map_or((None, text), |(device, rate)| (Some(device), rate));
        if let Some(other) = device.filter(|device| !DISKS.contains(device)) {
            return Err(RateError::Device(other.to_owned()));
        }
        let rate = number(rate).ok_or_else(|| RateError::Rate(rate.to_owned(), bytes))?;
        Ok(Self { device: device.map(str::to_owned), rate })
    }
}

/// Of `--network-rate`, in bytes a second.
pub fn parse_network(text: &str) -> Result<u64, RateError> {
    let bits = |text: &str| {
        let text = text.trim_end_matches("bit");
        let (digits, factor) = match text.char_indices().next_back()? {
            (at, 'k') => (&text[..at], 1000),
            (at, 'm') => (&text[..at], 1_000_000),
            (at, 'g') => (&text[..at], 1_000_000_000),
            _ => (text, 1),
        };
        Some(u64::from_str(digits).ok()?.checked_mul(factor)? / 8)
    };
    let lower = text.trim().to_ascii_lowercase();
    let rate = if lower.ends_with("bit") { bits(&lower) } else { parse_size(&lower) };
    rate.ok_or_else(|| RateError::Network(text.to_owned()))
}

/// What devices may carry.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct DeviceRates {
    /// `--device-read-bps`
    pub read_bps: Vec<DeviceRate>,
    /// `--device-write-bps`
    pub write_bps: Vec<DeviceRate>,
    /// `--device-read-iops`
    pub read_iops: Vec<DeviceRate>,
    /// `--device-write-iops`
    pub write_iops: Vec<DeviceRate>,
    /// `--network-rate`: bytes a second each way, of each interface; 0 is no limit.
    pub network: Option<u64>,
}

impl DeviceRates {
    /// Limits of the guest's disk `device`.
    pub fn disk(&self, device: &str) -> RateLimits {
        let last = |rates: &[DeviceRate]| {
            let of = |rate: &&DeviceRate| rate.device.as_deref().is_none_or(|of| of == device);
            rates.iter().rfind(of).and_then(|rate| bucket(rate.rate))
        };
        RateLimits {
            input: Rates { bandwidth: last(&self.read_bps), ops: last(&self.read_iops) },
            output: Rates { bandwidth: last(&self.write_bps), ops: last(&self.write_iops) },
            total: Rates::default(),
        }
    }

    /// Limits of each interface.
    pub fn interface(&self) -> RateLimits {
        let way = Rates { bandwidth: self.network.and_then(bucket), ops: None };
        RateLimits { input: way, output: way, total: Rates::default() }
    }

    /// The same with everything that `change` says.
    #[must_use]
    pub fn updated(&self, change: &Self) -> Self {
        let later = |old: &Vec<DeviceRate>, new: &Vec<DeviceRate>| {
            let is_said_again =
                |rate: &DeviceRate| new.iter().any(|new| new.device.is_none() || new.device == rate.device);
            old.iter().filter(|rate| !is_said_again(rate)).chain(new).cloned().collect()
        };
        Self {
            read_bps: later(&self.read_bps, &change.read_bps),
            write_bps: later(&self.write_bps, &change.write_bps),
            read_iops: later(&self.read_iops, &change.read_iops),
            write_iops: later(&self.write_iops, &change.write_iops),
            network: change.network.or(self.network),
        }
    }
}

fn bucket(rate: u64) -> Option<BucketConfig> {
    (rate > 0).then(|| BucketConfig::per_second(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_docker_writes_them() {
        let rate = DeviceRate::bytes("/dev/vdc:1mb").unwrap();
        assert_eq!((rate.device.as_deref(), rate.rate), (Some("/dev/vdc"), 1 << 20));
        assert_eq!(DeviceRate::operations("200").unwrap(), DeviceRate { device: None, rate: 200 });
        let foreign = DeviceRate::bytes("/dev/sda:1mb").unwrap_err().to_string();
        assert!(foreign.contains("/dev/sda") && foreign.contains("/dev/vdc"), "{foreign}");
        assert!(DeviceRate::operations("1mb").unwrap_err().to_string().contains("operations"));
        assert!(DeviceRate::bytes("/dev/vdb:").is_err());
        for (text, bytes) in
            [("10mbit", 1_250_000), ("1MB", 1 << 20), ("800bit", 100), ("0", 0), ("9kbit", 1125)]
        {
            assert_eq!(parse_network(text), Ok(bytes), "{text}");
        }
        for bad in ["", "bit", "kbit", "-1", "1.5mbit", "xmbit", "99999999999999999999gbit"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_later_rate_replaces_an_earlier_one_of_the_same_disk() {
        let of = |text: &[&str]| text.iter().map(|text| DeviceRate::bytes(text).unwrap()).collect::<Vec<_>>();
        let before = DeviceRates {
            read_bps: of(&["1mb", "/dev/vdc:2mb"]),
            network: Some(7),
            ..DeviceRates::default()
        };
        let size = |rates: &DeviceRates, disk| rates.disk(disk).input.bandwidth.map(|bucket| bucket.size);
        assert_eq!(size(&before, "/dev/vdb"), Some((1 << 20) / 10));
        assert_eq!(size(&before, "/dev/vdc"), Some((2 << 20) / 10));
        let after = before.updated(&DeviceRates { read_bps: of(&["/dev/vdc:0"]), ..DeviceRates::default() });
        assert_eq!((size(&after, "/dev/vdb"), size(&after, "/dev/vdc")), (Some((1 << 20) / 10), None));
        assert!(after.interface().output.bandwidth.is_some());
        let freed =
            after.updated(&DeviceRates { read_bps: of(&["0"]), network: Some(0), ..DeviceRates::default() });
        assert_eq!(freed.interface(), RateLimits::default());
        assert_eq!(freed.read_bps.len(), 1, "what is said again stays");
    }
}
