//! What a snapshot was taken of, and whether a machine fits it.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use crate::memory::MemoryShape;

/// A virtio device's ID where the slot was empty.
const EMPTY_SLOT: u32 = 0;

/// The machine of a snapshot, as far as its guest depends on it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Fingerprint {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u32,
    /// Memory that can be plugged, in MiB: a section of its own in the file, which most snapshots do not have.
    #[serde(skip)]
    pub hotplug_mib: u32,
    /// Virtio device IDs by slot.
    pub devices: Vec<u32>,
    /// A serial port is there.
    pub console: bool,
    /// Guest ring 0 is emulated, so the guest's kernel was told to do without some instructions.
    pub emulated_ring0: bool,
    /// CPUID as the guest's kernel saw it: (leaf, subleaf, EAX, EBX, ECX, EDX).
    pub cpuid: Vec<[u32; 6]>,
}

/// A machine that does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot is of a machine with {saved}, this one has {present}")]
pub struct Mismatch {
    /// What the snapshot has.
    saved: String,
    /// What the machine has.
    present: String,
}

impl Fingerprint {
    /// Whether a guest saved on `self` can go on on `present`.
    pub fn check(&self, present: &Self) -> Result<(), Mismatch> {
        self.check_size(present.vcpus, present.memory())?;
        let count = |devices: usize| format!("{devices} virtio slots");
        same(self.devices.len(), present.devices.len(), count)?;
        for (slot, (saved, present)) in self.devices.iter().zip(&present.devices).enumerate() {
            if *saved != EMPTY_SLOT {
                same(*saved, *present, |id| format!("virtio device type {id} in slot {slot}"))?;
            }
        }
        let port = |there: bool| if there { "a serial port" } else { "no serial port" }.to_owned();
        same(self.console, present.console, port)?;
        let ring0 =
            |emulated: bool| if emulated { "emulated ring 0" } else { "hardware virtualisation" }.to_owned();
        same(self.emulated_ring0, present.emulated_ring0, ring0)?;
        self.check_cpuid(present)
    }

    /// How much memory there is.
    pub fn memory(&self) -> MemoryShape {
        MemoryShape { hotplug_mib: self.hotplug_mib, ..self.mem_size_mib.into() }
    }

    /// Whether a machine of this size is right.
    pub fn check_size(&self, vcpus: u8, memory: MemoryShape) -> Result<(), Mismatch> {
        same(self.vcpus, vcpus, |vcpus| format!("{vcpus} vCPUs"))?;
        same(self.mem_size_mib, memory.boot_mib, |mib| format!("{mib} MiB of memory"))?;
        same(self.hotplug_mib, memory.hotplug_mib, |mib| format!("{mib} MiB of memory that can be plugged"))
    }

    /// Every leaf that the guest has seen must read as it did: a kernel looks once and relies on it.
    fn check_cpuid(&self, present: &Self) -> Result<(), Mismatch> {
        for saved in &self.cpuid {
            let [leaf, subleaf, ..] = *saved;
            let now = present.cpuid.iter().find(|entry| entry[..2] == saved[..2]);
            if now != Some(saved) {
                let text = |entry: Option<&[u32; 6]>| match entry {
                    Some([_, _, eax, ebx, ecx, edx]) => {
                        format!("CPUID {leaf:#x}.{subleaf:#x} = {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}")
                    }
                    None => format!("no CPUID {leaf:#x}.{subleaf:#x}"),
                };
                return Err(Mismatch { saved: text(Some(saved)), present: text(now) });
            }
        }
        Ok(())
    }
}

/// CPUID entries as they are compared. What differs from one run to the next on one host is left out.
pub fn cpuid(entries: &[kvm_cpuid_entry2]) -> Vec<[u32; 6]> {
    let mut leaves: Vec<[u32; 6]> =
        entries.iter().map(|e| [e.function, e.index, e.eax, e.ebx, e.ecx, e.edx]).collect();
    for [leaf, subleaf, eax, ebx, ..] in &mut leaves {
        match (*leaf, *subleaf) {
            // The APIC ID of whichever processor asked.
            (1, _) => *ebx &= 0x00ff_ffff,
            (0xb | 0x1f, _) => {}
            // Size of the XSAVE area for the features that are on in the asking process.
            (0xd, 0 | 1) => *ebx = 0,
            (0x8000_001e, _) => *eax = 0,
            _ => {}
        }
    }
    leaves.retain(|[leaf, ..]| !matches!(leaf, 0xb | 0x1f));
    leaves
}

fn same<T: PartialEq>(saved: T, present: T, text: impl Fn(T) -> String) -> Result<(), Mismatch> {
    if saved == present {
        return Ok(());
    }
    Err(Mismatch { saved: text(saved), present: text(present) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print() -> Fingerprint {
        Fingerprint {
            vcpus: 2,
            mem_size_mib: 128,
            hotplug_mib: 0,
            devices: vec![2, 19, 0],
            console: true,
            emulated_ring0: false,
            cpuid: vec![[1, 0, 5, 6, 7, 8], [7, 0, 0, 1, 2, 3]],
        }
    }

    #[test]
    fn an_equal_machine_fits_and_an_empty_slot_takes_a_device() {
        let mut present = print();
        present.devices[2] = 2;
        assert_eq!(print().check(&present), Ok(()));
        assert!(present.check(&print()).is_err());
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        type Change = fn(&mut Fingerprint);
        let cases: [(Change, &str); 7] = [
            (|p| p.vcpus = 1, "2 vCPUs, this one has 1 vCPUs"),
            (|p| p.mem_size_mib = 64, "128 MiB of memory, this one has 64 MiB"),
            (|p| p.hotplug_mib = 64, "0 MiB of memory that can be plugged, this one has 64 MiB"),
            (|p| p.devices[0] = 1, "virtio device type 2 in slot 0, this one has virtio device type 1"),
            (|p| p.console = false, "a serial port, this one has no serial port"),
            (|p| p.emulated_ring0 = true, "hardware virtualisation, this one has emulated ring 0"),
            (
                |p| p.cpuid[1][3] = 0,
                "CPUID 0x7.0x0 = 00000000 00000001 00000002 00000003, this one has CPUID",
            ),
        ];
        for (change, text) in cases {
            let mut present = print();
            change(&mut present);
            let error = print().check(&present).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let mut present = print();
        present.cpuid.pop();
        assert!(print().check(&present).unwrap_err().to_string().contains("no CPUID 0x7.0x0"));
    }
}
