//! `/hotplug/memory`: memory that the guest gets while it runs.

use api_server::Fault;
use api_server::http::Response;
use api_server::wire::{MemoryHotplug, MemoryHotplugStatus, MemoryHotplugUpdate};

use super::fault::refused;
use super::instance::{Guest, Instance};
use super::resources::Resources;
use crate::config::HotplugConfig;

/// Smallest block and slot, which is what they are without a word; Firecracker's.
const BLOCK_MIB: u32 = 2;
const SLOT_MIB: u32 = 128;

impl Resources {
    /// `PUT /hotplug/memory`, in Firecracker's words.
    pub fn set_memory_hotplug(&mut self, hotplug: &MemoryHotplug) -> Result<(), Fault> {
        self.touch();
        let MemoryHotplug { total_size_mib: total, block_size_mib, slot_size_mib } = *hotplug;
        let (block, slot) = (block_size_mib.unwrap_or(BLOCK_MIB), slot_size_mib.unwrap_or(SLOT_MIB));
        let why = if block < BLOCK_MIB {
            format!("Block size must not be lower than {BLOCK_MIB} MiB")
        } else if !block.is_power_of_two() {
            "Block size must be a power of 2".to_owned()
        } else if slot < SLOT_MIB {
            format!("Slot size must not be lower than {SLOT_MIB} MiB")
        } else if !slot.is_multiple_of(block) {
            format!("Slot size must be a multiple of block size ({block} MiB)")
        } else if total < slot {
            format!("Total size must not be lower than slot size ({slot} MiB)")
        } else if !total.is_multiple_of(slot) {
            format!("Total size must be a multiple of slot size ({slot} MiB)")
        } else {
            let (block_size_mib, slot_size_mib) = (Some(block), Some(slot));
            self.replace_hotplug(MemoryHotplug { total_size_mib: total, block_size_mib, slot_size_mib });
            return Ok(());
        };
        Err(Fault::new(format!("Memory hotplug config error: {why}")))
    }
}

/// What a VM is built with. A slot, Firecracker's unit of protection, is nothing here.
pub fn config(hotplug: &MemoryHotplug) -> HotplugConfig {
    let block_mib = hotplug.block_size_mib.unwrap_or(BLOCK_MIB);
    HotplugConfig { size_mib: hotplug.total_size_mib, block_mib }
}

impl Instance {
    /// `GET /hotplug/memory`
    pub fn memory_hotplug(&self, guest: &Guest) -> Result<Response, Fault> {
        let (Some(control), Some(config)) = (guest.vm.hotplug(), self.resources.memory_hotplug()) else {
            return Err(no_memory("Internal VMM error"));
        };
        let (sizes, mib) = (control.sizes(), |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
        Ok(Response::data(&MemoryHotplugStatus {
            total_size_mib: config.total_size_mib,
            block_size_mib: config.block_size_mib.unwrap_or(BLOCK_MIB),
            slot_size_mib: config.slot_size_mib.unwrap_or(SLOT_MIB),
            plugged_size_mib: mib(sizes.plugged),
            requested_size_mib: mib(sizes.requested),
        }))
    }

    /// `PATCH /hotplug/memory`
    pub fn update_memory_hotplug(&self, update: &MemoryHotplugUpdate, guest: &Guest) -> Result<(), Fault> {
        let what = "Memory hotplug update error";
        let control = guest.vm.hotplug().ok_or_else(|| no_memory(what))?;
        control.request(u64::from(update.requested_size_mib) << 20).map_err(|error| refused(what, &error))
    }
}

fn no_memory(what: &str) -> Fault {
    Fault::new(format!("{what}: no memory can be plugged: PUT /hotplug/memory before the start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_each_other() {
        let set = |total, block, slot| {
            let mut resources = Resources::default();
            let hotplug = MemoryHotplug { total_size_mib: total, block_size_mib: block, slot_size_mib: slot };
            resources.set_memory_hotplug(&hotplug).map(|()| config(resources.memory_hotplug().unwrap()))
        };
        assert_eq!(set(1024, None, None), Ok(HotplugConfig { size_mib: 1024, block_mib: 2 }));
        assert_eq!(set(512, Some(4), Some(256)), Ok(HotplugConfig { size_mib: 512, block_mib: 4 }));
        for (total, block, slot, why) in [
            (1024, Some(1), None, "Block size must not be lower than 2 MiB"),
            (1024, Some(6), None, "Block size must be a power of 2"),
            (1024, None, Some(64), "Slot size must not be lower than 128 MiB"),
            (1024, Some(256), Some(128), "Slot size must be a multiple of block size (256 MiB)"),
            (64, None, None, "Total size must not be lower than slot size (128 MiB)"),
            (129, None, None, "Total size must be a multiple of slot size (128 MiB)"),
        ] {
            let message = set(total, block, slot).unwrap_err().message;
            assert_eq!(message, format!("Memory hotplug config error: {why}"));
        }
    }
}
