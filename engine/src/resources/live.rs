//! Other limits for a container that runs.

use std::time::{Duration, Instant};

use vmm::config::RateLimits;
use vmm::control::{Client, ClientError, Request};

use super::ResourceSpec;
use super::cgroup::{Cgroup, CgroupError};
use super::rates::{DISKS, DeviceRates};
use crate::container::record::Record;
use crate::plan::resources::vm_memory_mib;

/// How long a VMM may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest is waited for that has to give memory back.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// Why the limits of a running container stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The host's part.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The VMM's part.
    #[error("cannot tell the container's VMM")]
    Vmm(#[from] ClientError),
    /// A machine does not grow.
    #[error(
        "the machine of container {name} has {mib} MiB, of which its kernel needs a part, and does not grow while it \
         runs: stop the container first, then it starts with more"
    )]
    Memory {
        /// Its name.
        name: String,
        /// What it has, in MiB.
        mib: u32,
    },
    /// It was told not to.
    #[error(
        "container {0} was made with --memory-reclaim=false, so its memory cannot be changed while it runs: stop it first"
    )]
    NoBalloon(String),
}

/// What became of a change of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrunk {
    /// The guest has as much as it should.
    Whole,
    /// It gave only part of it back so far, and goes on as it can: so much is missing, in MiB.
    Partly(u32),
}

/// Sets those of the limits in `spec` that `change` is about.
pub fn apply(record: &Record, spec: &ResourceSpec, change: &ResourceSpec) -> Result<(), UpdateError> {
    if let Some(vmm) = record.state.vmm.filter(|_| change.needs_cgroup()) {
        Cgroup::change(&record.spec.id, spec, vmm)?;
    }
    if change.rates != DeviceRates::default() {
        let mut vmm = Client::connect(&record.control(), TIMEOUT)?;
        for (device, limits) in devices(record, &spec.rates) {
            vmm.ask(&Request::Limit { device, limits })?;
        }
    }
    Ok(())
}

/// Gives the container `memory_mib` from now on.
pub fn set_memory(record: &Record, memory_mib: u32) -> Result<Shrunk, UpdateError> {
    let mut vmm = Client::connect(&record.control(), TIMEOUT)?;
    let status = vmm.ask(&Request::Status)?;
    let name = || record.name.clone();
    if status.balloon_mib.is_none() {
        return Err(UpdateError::NoBalloon(name()));
    }
    let machine = status.mem_size_mib.unwrap_or_default();
    let target = machine
        .checked_sub(vm_memory_mib(memory_mib))
        .ok_or_else(|| UpdateError::Memory { name: name(), mib: machine })?;
    vmm.ask(&Request::Balloon { mib: target })?;
    let end = Instant::now() + PATIENCE;
    loop {
        let balloon = vmm.ask(&Request::Status)?.balloon_mib.unwrap_or_default();
        match target.saturating_sub(balloon) {
            0 => return Ok(Shrunk::Whole),
            missing if Instant::now() > end => return Ok(Shrunk::Partly(missing)),
            _ => std::thread::sleep(GLANCE),
        }
    }
}

/// The guest's names of what can be limited.
fn devices(record: &Record, rates: &DeviceRates) -> Vec<(String, RateLimits)> {
    let disks = DISKS.into_iter().take(if record.spec.plan.writable() { 2 } else { 1 });
    let disks = disks.map(|device| (device.trim_start_matches("/dev/").to_owned(), rates.disk(device)));
    let count = record.spec.network.interfaces().count();
    let interfaces = (0..count).map(|number| (format!("eth{number}"), rates.interface()));
    disks.chain(interfaces).collect()
}
