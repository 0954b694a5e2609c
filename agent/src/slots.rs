//! Devices that come into the machine's spare virtio slots, and go, while it runs (virtio 1.2, section 4.2.3.1.1).

use std::io;

use agent_protocol::message::InterfacePlan;
use rustix::io::Errno;

use crate::failure::{Context, Failure};
use crate::network;
use crate::sysfs::Sysfs;

/// The platform driver of virtio-mmio slots.
const DRIVER: &str = "bus/platform/drivers/virtio-mmio";
/// What the kernel calls a slot, with its number behind.
const SLOT: &str = "virtio-mmio.";
/// Bytes from the registers of one slot to those of the next.
const SLOT_BYTES: u64 = 4096;

/// Has the driver look at slot `slot`, where there is a device now.
pub fn probe(slot: u8) -> Result<(), Failure> {
    let look = || -> io::Result<()> {
        let sysfs = Sysfs::open()?;
        match sysfs.write(&format!("{DRIVER}/bind"), format!("{SLOT}{slot}").as_bytes()) {
            // The kernel was not told of it.
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                let devices = format!("{DRIVER}/devices");
                let line = line_of(&sysfs.read(&devices)?, slot).ok_or(io::ErrorKind::InvalidData)?;
                sysfs.write(&devices, line.as_bytes())
            }
            found => found,
        }
    };
    look().during(&format!("find the device in virtio slot {slot}"))
}

/// What tells the driver of slot `slot`, by the kernel's list of slots: `0x1000@0xd0000000:5:0`, size, address,
/// interrupt and number, the latter three counting up together.
fn line_of(devices: &str, slot: u8) -> Option<String> {
    let (size, rest) = devices.lines().next()?.split_once("@0x")?;
    let mut fields = rest.split(':');
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let interrupt: u32 = fields.next()?.parse().ok()?;
    let ahead = slot.checked_sub(fields.next()?.parse().ok()?)?;
    let address = address + u64::from(ahead) * SLOT_BYTES;
    Some(format!("{size}@{address:#x}:{}:{slot}", interrupt + u32::from(ahead)))
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
    fn a_slot_that_the_kernel_does_not_know_follows_from_the_first() {
        let devices = "0x1000@0xd0000000:5:0\n0x1000@0xd0001000:6:1\n";
        assert_eq!(line_of(devices, 9).as_deref(), Some("0x1000@0xd0009000:14:9"));
        assert_eq!(line_of("0x1000@0xd0002000:7:2\n", 3).as_deref(), Some("0x1000@0xd0003000:8:3"));
        for other in ["", "0x1000", "0x1000@0xd0000000:5", "0x1000@0xd0002000:7:2"] {
            assert_eq!(line_of(other, 1), None, "{other}");
        }
    }

    #[test]
    fn a_slot_is_found_in_the_path_of_its_interface() {
        let path = "../../devices/platform/virtio-mmio.5/virtio3/net/eth0";
        assert_eq!(slot_in(path).as_deref(), Some("virtio-mmio.5"));
        assert_eq!(slot_in("../../devices/virtual/net/eth0"), None);
        assert_eq!(text([2, 0, 0xab, 0, 0, 1]), "02:00:ab:00:00:01");
    }
}
