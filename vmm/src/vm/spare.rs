//! The spare virtio slots: plugged devices first, placeholders after them.
//!
//! ```text
//! slots when saved:  vda  vsock  rng  spare  spare  spare
//! slots restored:    vda  vsock  rng  vdb    vdc    spare
//! ```

use devices::virtio::placeholder::Placeholder;

use super::machine::{DeviceError, Named, disk, net};
use crate::config::VmConfig;

/// Exactly `config.spare_slots` devices, plugged persistent memory being `pmem`.
pub fn devices(config: &VmConfig, pmem: Vec<Named>) -> Result<Vec<Named>, DeviceError> {
    let plugged = &config.plugged;
    let spare = usize::from(config.spare_slots);
    let count = plugged.disks.len() + pmem.len() + plugged.net.iter().len();
    if count > spare {
        return Err(DeviceError::TooManyPlugged { count, spare });
    }
    let mut devices = Vec::with_capacity(spare);
    for (index, config) in (config.disks.len()..).zip(&plugged.disks) {
        devices.push(disk(index, config)?);
    }
    devices.extend(pmem);
    if let Some(interface) = &plugged.net {
        devices.push(net(&format!("eth{}", config.net.len()), interface)?);
    }
    for number in devices.len()..spare {
        devices.push((format!("spare{number}"), Box::new(Placeholder)));
    }
    Ok(devices)
}
