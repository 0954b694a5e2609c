//! Where things are in guest physical memory.
//!
//! ```text
//! 0x0000_0500  GDT                          0x0010_0000  high memory: kernel, initrd
//! 0x0000_7000  zero page (boot_params)      0xC000_0000  MMIO hole
//! 0x0000_9000  page tables (3 pages)        0xD000_0000  virtio-mmio slots, 4 KiB each
//! 0x0002_0000  command line                 0xFEC0_0000  IOAPIC
//! 0x0009_FC00  MP table (end of low memory) 0xFEE0_0000  LAPIC
//! 0x000A_0000  hole of the first MiB        0x1_0000_0000  memory above the hole
//!                                           next GiB       memory that can be plugged
//!                                           next GiB       persistent memory
//! ```

/// Size of a small page.
pub const PAGE_SIZE: u64 = 0x1000;

/// Global descriptor table used until the kernel loads its own.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table: present and empty.
pub const IDT: u64 = 0x528;
/// The zero page, Linux's `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top-level page table; the two tables below follow it.
pub const PML4: u64 = 0x9000;
/// Initial stack pointer; grows down from just below the page tables.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line, a C string.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line, terminating zero included; x86 Linux's own COMMAND_LINE_SIZE is 2048.
pub const CMDLINE_MAX: usize = 2048;
/// The MP floating pointer and table: the last KiB of low memory, where Linux looks for it.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Room for the MP table.
pub const MP_TABLE_MAX: usize = 0x400;
/// End of the memory below the hole of the first MiB that the guest may use as RAM.
pub const LOW_RAM_END: u64 = MP_TABLE;
/// Start of high memory.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Start of the hole for device memory below 4 GiB.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// End (exclusive) of that hole; memory goes on here.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio slot.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Size of one virtio-mmio slot.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// GSI of the first virtio-mmio slot; slot n uses this plus n.
pub const VIRTIO_MMIO_FIRST_GSI: u32 = 5;
/// IOAPIC pins, which are the GSIs of the machine.
pub const IOAPIC_PINS: u32 = 24;
/// Number of virtio-mmio slots, bounded by the IOAPIC's pins.
pub const VIRTIO_MMIO_SLOTS: usize = (IOAPIC_PINS - VIRTIO_MMIO_FIRST_GSI) as usize;

/// Registers of the IOAPIC.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Registers of the local APIC (KVM's).
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Three pages that KVM on VT-x needs for real mode; inside the hole, never seen by the guest.
pub const KVM_TSS: usize = 0xfffb_d000;

/// I/O port of the serial port (COM1) and its size.
pub const SERIAL_PORT: (u16, u16) = (0x3f8, 8);
/// GSI of the keyboard.
pub const KEYBOARD_GSI: u32 = 1;
/// GSI of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// I/O port of the i8042's command register; the data register is at 0x60.
pub const I8042_PORT: (u16, u16) = (0x60, 5);
/// I/O port of the power device.
pub const POWER_PORT: (u16, u16) = (0x600, 1);

/// Most vCPUs of one VM.
pub const MAX_VCPUS: u8 = 32;
/// Least guest memory in MiB.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Most guest memory in MiB: 1 TiB, within every host's guest-physical address width.
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;

/// A range of guest-physical RAM: start and size in bytes.
pub type RamRange = (u64, u64);

/// Splits `size` bytes of RAM around the hole below 4 GiB: one range or two, ascending.
pub fn ram_ranges(size: u64) -> Vec<RamRange> {
    if size <= MMIO_HOLE_START {
        return vec![(0, size)];
    }
    vec![(0, MMIO_HOLE_START), (MMIO_HOLE_END, size - MMIO_HOLE_START)]
}

/// Start and size of a window of persistent memory are multiples of this: Linux maps no less (a subsection).
pub const PMEM_ALIGN: u64 = 2 << 20;

/// Where memory that can be plugged begins in a VM with `ram` bytes of RAM: a GiB of its own, so that the guest's
/// kernel never has both in one section of its memory map, and above all device memory.
pub fn hotplug_start(ram: u64) -> u64 {
    let end = ram_ranges(ram).last().map_or(0, |(start, size)| start + size);
    end.max(MMIO_HOLE_END).next_multiple_of(1 << 30)
}

/// Where windows of persistent memory begin in a VM with `ram` bytes of RAM and `hotplug` bytes that can be plugged: a
/// GiB of its own too.
pub fn pmem_start(ram: u64, hotplug: u64) -> u64 {
    (hotplug_start(ram) + hotplug).next_multiple_of(1 << 30)
}

/// Guest-physical address of virtio-mmio slot `slot`.
pub fn virtio_mmio_address(slot: usize) -> u64 {
    VIRTIO_MMIO_BASE + slot as u64 * VIRTIO_MMIO_SIZE
}

/// GSI of virtio-mmio slot `slot`.
pub fn virtio_mmio_gsi(slot: usize) -> u32 {
    VIRTIO_MMIO_FIRST_GSI + slot as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ram_ranges(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram_ranges(MMIO_HOLE_START), [(0, MMIO_HOLE_START)]);
    }

    #[test]
    fn large_memory_goes_on_above_the_hole() {
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn persistent_memory_is_above_ram_and_devices() {
        assert_eq!(pmem_start(64 << 20, 0), 4 << 30);
        assert_eq!(pmem_start(3 << 30, 0), 4 << 30);
        assert_eq!(pmem_start((3 << 30) + 1, 0), 5 << 30);
        assert_eq!(pmem_start(5 << 30, 0), 6 << 30);
        assert_eq!(hotplug_start(64 << 20), 4 << 30);
        assert_eq!(pmem_start(64 << 20, 128 << 20), 5 << 30);
    }

    #[test]
    fn the_last_slot_uses_the_last_pin() {
        assert_eq!(virtio_mmio_gsi(VIRTIO_MMIO_SLOTS - 1), IOAPIC_PINS - 1);
        assert_eq!(virtio_mmio_address(2), 0xd000_2000);
    }
}
