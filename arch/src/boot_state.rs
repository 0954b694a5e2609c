//! Registers of a vCPU at the 64-bit entry of a kernel (Linux boot protocol, "64-bit boot protocol").

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::layout::{BOOT_STACK, GDT, IDT, PML4, ZERO_PAGE};
use crate::page_tables::{CODE_SELECTOR, DATA_SELECTOR, GDT_ENTRIES, TSS_SELECTOR};

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// General registers of the boot vCPU: RIP at `entry`, RSI at the zero page.
pub fn regs(entry: u64) -> kvm_regs {
    kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rsi: ZERO_PAGE,
        ..Default::default()
    }
}

/// Puts 64-bit mode with flat segments into `sregs`, which KVM filled with the reset state.
pub fn set_long_mode(sregs: &mut kvm_sregs) {
    let code = segment(CODE_SELECTOR);
    let data = segment(DATA_SELECTOR);
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = segment(TSS_SELECTOR);
    sregs.gdt = kvm_dtable { base: GDT, limit: (GDT_ENTRIES.len() * 8 - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 0, ..Default::default() };
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

/// The segment register for a selector of [`GDT_ENTRIES`] (Intel SDM 3A, figure 3-8).
fn segment(selector: u16) -> kvm_segment {
    let entry = GDT_ENTRIES[usize::from(selector >> 3)];
    let bits = |shift: u32, count: u32| ((entry >> shift) & ((1 << count) - 1)) as u8;
    let granular = bits(55, 1);
    let limit = (entry & 0xffff) as u32 | ((entry >> 32) & 0xf_0000) as u32;
    kvm_segment {
        base: ((entry >> 16) & 0xff_ffff) | ((entry >> 32) & 0xff00_0000),
        limit: if granular == 1 { (limit << 12) | 0xfff } else { limit },
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: granular,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_match_their_descriptors() {
        let code = segment(CODE_SELECTOR);
        assert_eq!((code.type_, code.s, code.l, code.db, code.present), (0xb, 1, 1, 0, 1));
        assert_eq!((code.base, code.limit), (0, 0xffff_ffff));
        let data = segment(DATA_SELECTOR);
        assert_eq!((data.type_, data.s, data.l, data.db), (3, 1, 0, 1));
        let tss = segment(TSS_SELECTOR);
        assert_eq!((tss.type_, tss.s, tss.present), (0xb, 0, 1));
    }

    #[test]
    fn paging_and_long_mode_are_on() {
        let mut sregs = kvm_sregs::default();
        set_long_mode(&mut sregs);
        assert_eq!(sregs.cr0, 0x8000_0011);
        assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (PML4, 0x20, 0x500));
        assert_eq!(regs(0x100_0000).rsi, ZERO_PAGE);
    }
}
