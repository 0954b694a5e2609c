//! Devices that come into the machine's spare virtio slots, and go, while it runs (virtio 1.2, section 4.2.3.1.1).

use std::io;

use agent_protocol::message::InterfacePlan;

use crate::failure::{Context, Failure};
use crate::network;
use crate::sysfs::Sysfs;

/// The platform driver of virtio-mmio slots.
const DRIVER: &str = "bus/platform/drivers/virtio-mmio";
/// What the kernel calls a slot, with its number behind.
const SLOT: &str = "virtio-mmio.";

/// Has the driver look at slot `slot` again, where there is a device now.
pub fn probe(slot: u8) -> Result<(), Failure> {
    Sysfs::open()
        .and_then(|sysfs| sysfs.write(&format!("{DRIVER}/bind"), format!("{SLOT}{slot}").as_bytes()))
        .during(&format!("find the device in virtio slot {slot}"))
}

/// Brings up the interface of `plan`, after a look at slot `slot` if it has just come there.
pub fn connect(slot: Option<u8>, plan: &InterfacePlan) -> Result<(), Failure> {
    slot.into_iter().try_for_each(probe)?;
    let (number, _) = interface(plan.mac)?;
    network::connect(number, plan)
}

/// Has the driver let go of the interface with the hardware address `mac`.
pub fn disconnect(mac: [u8; 6]) -> Result<(), Failure> {
    let (_, slot) = interface(mac)?;
    Sysfs::open()
        .and_then(|sysfs| sysfs.write(&format!("{DRIVER}/unbind"), slot.as_bytes()))
        .during("let go of an interface")
}

/// The `eth` with the hardware address `mac`: its number, and what the kernel calls its slot.
fn interface(mac: [u8; 6]) -> Result<(usize, String), Failure> {
    let look = || -> io::Result<Option<(usize, String)>> {
        let sysfs = Sysfs::open()?;
        for number in 0..network::MAX_INTERFACES {
            let place = format!("class/net/eth{number}");
            let Ok(address) = sysfs.read(&format!("{place}/address")) else { continue };
            if address.trim_end() == text(mac) {
                return Ok(slot_in(&sysfs.link(&place)?).map(|slot| (number, slot)));
            }
        }
        Ok(None)
    };
    look().during("look for an interface")?.ok_or_else(|| {
        Failure::agent(format!("the guest has no interface with the hardware address {}", text(mac)))
    })
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The slot in the path of one of its devices.
fn slot_in(path: &str) -> Option<String> {
    path.split('/').find(|part| part.starts_with(SLOT)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_found_in_the_path_of_its_interface() {
        let path = "../../devices/platform/virtio-mmio.5/virtio3/net/eth0";
        assert_eq!(slot_in(path).as_deref(), Some("virtio-mmio.5"));
        assert_eq!(slot_in("../../devices/virtual/net/eth0"), None);
        assert_eq!(text([2, 0, 0xab, 0, 0, 1]), "02:00:ab:00:00:01");
    }
}
