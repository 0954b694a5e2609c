//! Model-specific registers: what a vCPU starts with and what a saved vCPU consists of.

use kvm_bindings::kvm_msr_entry;

const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// Fast string operations are on.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs on, default type write-back: without firmware nobody else says that RAM is cacheable.
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

/// MSRs that differ from KVM's reset values at boot.
pub fn boot_entries() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)]
}

/// IA32_TSC: first in a saved state, since the TSC-deadline timer is relative to it.
pub const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: set last, after the LAPIC, or the timer would be lost.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that hold guest state and survive a save and restore; KVM may lack some of them.
///
/// Order matters on restore: [`TSC`] first, [`TSC_DEADLINE`] last.
pub const SAVED: [u32; 51] = [
    TSC,
    0x3b,  // TSC_ADJUST
    0x174, // SYSENTER_CS
    0x175, // SYSENTER_ESP
    0x176, // SYSENTER_EIP
    0x277, // PAT
    MISC_ENABLE,
    0x48,        // SPEC_CTRL
    0xda0,       // XSS
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SYSCALL_MASK
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0103, // TSC_AUX
    0x200,       // MTRR variable ranges 0 to 7, base and mask
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    0x250, // MTRR fixed ranges
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
    MTRR_DEF_TYPE,
    0x4b56_4d00, // KVM_WALL_CLOCK_NEW
    0x4b56_4d01, // KVM_SYSTEM_TIME_NEW
    0x4b56_4d02, // KVM_ASYNC_PF_EN
    0x4b56_4d03, // KVM_STEAL_TIME
    0x4b56_4d04, // KVM_PV_EOI_EN
    0x4b56_4d05, // KVM_POLL_CONTROL
    0x4b56_4d06, // KVM_ASYNC_PF_INT
    TSC_DEADLINE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_first_and_its_deadline_last() {
        assert_eq!((SAVED[0], SAVED[SAVED.len() - 1]), (TSC, TSC_DEADLINE));
        let mut unique = SAVED.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), SAVED.len());
    }
}
