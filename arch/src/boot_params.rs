//! The zero page: Linux' `struct boot_params` with the memory map (boot protocol, "The zero page").

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::initrd::Initrd;
use crate::kernel::LoadedKernel;
use crate::layout::{CMDLINE, HIGH_RAM_START, LOW_RAM_END, ZERO_PAGE};

const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = 0x5372_6448;
/// "Undefined loader" with no version: none of the assigned numbers is ours.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const MIN_KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// Builds and writes the zero page at [`ZERO_PAGE`].
///
/// `mem` tells where RAM is; the command line is at [`CMDLINE`] and has `cmdline_len` bytes.
pub fn write<M: GuestMemoryBackend>(
    mem: &M,
    kernel: &LoadedKernel,
    initrd: Option<Initrd>,
    cmdline_len: usize,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params::default();
    if let Some(header) = kernel.setup_header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HDRS;
        params.hdr.kernel_alignment = MIN_KERNEL_ALIGNMENT;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    if let Some(initrd) = initrd {
        // An initrd lies below the MMIO hole, so both values fit.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
    }
    let map = memory_map(mem);
    params.e820_entries = map.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = entry;
    }
    mem.write_obj(params, GuestAddress(ZERO_PAGE))
}

/// The e820 map: RAM only. What is not listed, the first MiB's hole and device memory, is reserved.
fn memory_map<M: GuestMemoryBackend>(mem: &M) -> Vec<boot_e820_entry> {
    let ram = |start: u64, end: u64| boot_e820_entry { addr: start, size: end - start, r#type: E820_RAM };
    let mut map = vec![ram(0, LOW_RAM_END)];
    for region in mem.iter() {
        let start = region.start_addr().0;
        map.push(ram(start.max(HIGH_RAM_START), start + region.len()));
    }
    map
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn the_map_leaves_out_both_holes() {
        let ranges = [(GuestAddress(0), 0x20_0000), (GuestAddress(1 << 32), 0x10_0000)];
        let mem = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let map: Vec<(u64, u64)> = memory_map(&mem).iter().map(|e| (e.addr, e.size)).collect();
        assert_eq!(map, [(0, 0x9_fc00), (0x10_0000, 0x10_0000), (1 << 32, 0x10_0000)]);
    }

    #[test]
    fn the_zero_page_names_command_line_and_initrd() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        let kernel = LoadedKernel { entry: 0x10_0000, end: 0x11_0000, setup_header: None };
        write(&mem, &kernel, Some(Initrd { start: 0x1f_0000, len: 7 }), 12).unwrap();
        let at = |offset: u64| mem.read_obj::<u32>(GuestAddress(ZERO_PAGE + offset)).unwrap();
        assert_eq!((at(0x202), at(0x228), at(0x238)), (HDRS, CMDLINE as u32, 12));
        assert_eq!((at(0x218), at(0x21c)), (0x1f_0000, 7));
        assert_eq!(mem.read_obj::<u8>(GuestAddress(ZERO_PAGE + 0x1e8)).unwrap(), 2);
    }
}
