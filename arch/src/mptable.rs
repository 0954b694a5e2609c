//! The MP table: processors, one ISA bus, one IOAPIC, and the interrupts that are wired.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. Without ACPI it is how Linux learns of its vCPUs and
//! the IOAPIC. Only GSIs in use are listed, so the kernel sets up no pin in vain.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{IOAPIC_BASE, LAPIC_BASE, MP_TABLE, MP_TABLE_MAX};

const SPEC_1_4: u8 = 4;
/// Version of an integrated APIC.
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const POINTER_LEN: u64 = 16;
const HEADER_LEN: usize = 44;
const BUS_ISA: u8 = 0;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const ENTRY_CPU: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const EVERY_LAPIC: u8 = 0xff;

/// Writes the table for `vcpus` vCPUs with the IOAPIC pins `gsis` wired, edge triggered, active high.
pub fn write<M: GuestMemoryBackend>(mem: &M, vcpus: u8, gsis: &[u32]) -> Result<(), GuestMemoryError> {
    let table = table(vcpus, gsis);
    debug_assert!(POINTER_LEN as usize + table.len() <= MP_TABLE_MAX);
    mem.write_slice(&pointer(), GuestAddress(MP_TABLE))?;
    mem.write_slice(&table, GuestAddress(MP_TABLE + POINTER_LEN))
}

/// Byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(((MP_TABLE + POINTER_LEN) as u32).to_le_bytes());
    pointer.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(vcpus: u8, gsis: &[u32]) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries: Vec<Vec<u8>> = (0..vcpus).map(processor).collect();
    entries.push([&[ENTRY_BUS, BUS_ISA], b"ISA   ".as_slice()].concat());
    let ioapic = [ENTRY_IOAPIC, ioapic_id, IOAPIC_VERSION, 1];
    entries.push([ioapic, (IOAPIC_BASE as u32).to_le_bytes()].concat());
    for gsi in gsis {
        entries.push(vec![ENTRY_INTERRUPT, INT, 0, 0, BUS_ISA, *gsi as u8, ioapic_id, *gsi as u8]);
    }
    entries.push(vec![ENTRY_LOCAL_INTERRUPT, EXT_INT, 0, 0, BUS_ISA, 0, 0, 0]);
    entries.push(vec![ENTRY_LOCAL_INTERRUPT, NMI, 0, 0, BUS_ISA, 0, EVERY_LAPIC, 1]);

    let body = entries.concat();
    let mut table = b"PCMP".to_vec();
    table.extend(((HEADER_LEN + body.len()) as u16).to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"LIGHTER microvm     ");
    table.extend([0; 6]);
    table.extend((entries.len() as u16).to_le_bytes());
    table.extend((LAPIC_BASE as u32).to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    table[7] = checksum(&table);
    table
}

fn processor(apic_id: u8) -> Vec<u8> {
    let flags = if apic_id == 0 { CPU_ENABLED | CPU_BOOT } else { CPU_ENABLED };
    let mut entry = vec![ENTRY_CPU, apic_id, APIC_VERSION, flags];
    // Signature and feature flags: Linux asks CPUID instead. FPU and APIC are said to be there.
    entry.extend(0x600_u32.to_le_bytes());
    entry.extend(0x201_u32.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{IOAPIC_PINS, MAX_VCPUS};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_largest_table_fits_and_sums_to_zero() {
        let gsis: Vec<u32> = (0..IOAPIC_PINS).collect();
        let table = table(MAX_VCPUS, &gsis);
        assert!(POINTER_LEN as usize + table.len() <= MP_TABLE_MAX, "{} bytes", table.len());
        assert_eq!((sum(&table), sum(&pointer())), (0, 0));
        assert_eq!(u16::from_le_bytes([table[4], table[5]]) as usize, table.len());
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), 32 + 1 + 1 + 24 + 2);
    }

    #[test]
    fn only_the_first_processor_boots() {
        let table = table(2, &[4]);
        assert_eq!((table[44 + 3], table[64 + 3]), (3, 1));
        assert_eq!(table[84..92], *b"\x01\x00ISA   ");
        assert_eq!(table[100..108], [3, 0, 0, 0, 0, 4, 2, 4]);
    }
}
