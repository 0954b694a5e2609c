//! The page tables and segments that a vCPU starts with: first GiB mapped one to one by 2 MiB pages.
//!
//! Linux' 64-bit entry needs the kernel, the zero page and the command line mapped (boot protocol,
//! "64-bit boot protocol"); it maps whatever else it touches through its own early fault handler.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{GDT, IDT, PAGE_SIZE, PML4};

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// Selector of the 64-bit code segment, Linux' `__BOOT_CS`.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment, Linux' `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment that VT-x wants to be there.
pub const TSS_SELECTOR: u16 = 0x20;

/// Flat 64-bit code, read/execute, accessed.
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Flat data, read/write, accessed.
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// Busy 64-bit TSS at 0.
const TSS_DESCRIPTOR: u64 = 0x008f_8b00_0000_ffff;

/// The global descriptor table in memory order.
pub const GDT_ENTRIES: [u64; 5] = [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, TSS_DESCRIPTOR];

const _: () = assert!(GDT + (GDT_ENTRIES.len() as u64) * 8 <= IDT);

/// Writes the identity map of the first GiB at [`PML4`] and the descriptor tables.
pub fn write<M: GuestMemoryBackend>(mem: &M) -> Result<(), GuestMemoryError> {
    let pdpt = PML4 + PAGE_SIZE;
    let directory = pdpt + PAGE_SIZE;
    mem.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(PML4))?;
    mem.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let mut entries = Vec::with_capacity((ENTRIES * 8) as usize);
    for index in 0..ENTRIES {
        entries.extend_from_slice(&((index << 21) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes());
    }
    mem.write_slice(&entries, GuestAddress(directory))?;

    let gdt: Vec<u8> = GDT_ENTRIES.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    mem.write_slice(&gdt, GuestAddress(GDT))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn an_address_translates_to_itself() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&mem).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            mem.read_obj::<u64>(GuestAddress((table & !0xfff) + index * 8)).unwrap()
        };
        let address = 0x0123_4567_u64;
        let directory = entry(entry(PML4, 0), 0);
        let page = entry(directory, address >> 21);
        assert_eq!(page & 0x83, 0x83, "present, writable, large");
        assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
    }
}
