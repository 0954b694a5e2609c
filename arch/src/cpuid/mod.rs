//! CPUID as the guest sees it: what KVM supports, cut to what this machine has.

mod features;
mod topology;

use kvm_bindings::kvm_cpuid_entry2;

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry answers for one subleaf only.
const SIGNIFICANT_INDEX: u32 = 1;

/// What the shape of CPUID depends on.
#[derive(Clone, Copy, Debug)]
pub struct CpuidConfig {
    /// vCPUs in the VM: one socket, one thread a core.
    pub vcpus: u8,
    /// This host's KVM emulates guest ring 0, so what its emulator lacks is hidden from the kernel.
    pub emulated_ring0: bool,
}

/// Shapes `supported` (KVM_GET_SUPPORTED_CPUID) for the vCPU with APIC ID 0.
pub fn shape(supported: &[kvm_cpuid_entry2], config: CpuidConfig) -> Vec<kvm_cpuid_entry2> {
    let mut entries = supported.to_vec();
    features::restrict(&mut entries, config.emulated_ring0);
    topology::describe(&mut entries, config.vcpus);
    entries
}

/// Puts `apic_id` into every leaf that tells a vCPU its own ID.
pub fn set_apic_id(entries: &mut [kvm_cpuid_entry2], apic_id: u8) {
    topology::set_apic_id(entries, u32::from(apic_id));
}

/// Replaces the bits `mask` of `register` by those of `value`.
fn set_bits(register: &mut u32, mask: u32, value: u32) {
    *register = (*register & !mask) | (value & mask);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() }
    }

    fn shaped(vcpus: u8, emulated_ring0: bool) -> Vec<kvm_cpuid_entry2> {
        let supported = [
            entry(0, 0),
            entry(1, 0),
            entry(4, 0),
            entry(4, 3),
            entry(0xa, 0),
            entry(0xb, 0),
            entry(0x1f, 0),
            entry(0x4000_0001, 0),
            entry(0x8000_0001, 0),
            entry(0x8000_0008, 0),
            entry(0x8000_001d, 3),
            entry(0x8000_001e, 0),
            entry(0x8000_0026, 0),
        ];
        shape(&supported, CpuidConfig { vcpus, emulated_ring0 })
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn the_extended_topology_counts_the_vcpus() {
        let mut entries = shaped(4, false);
        set_apic_id(&mut entries, 3);
        let threads = leaf(&entries, 0xb, 0);
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 3));
        let cores = leaf(&entries, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 4, 0x201, 3));
        assert!(!entries.iter().any(|e| e.function == 0x8000_0026 || e.function == 0x1f));
    }

    #[test]
    fn older_topology_leaves_agree() {
        let mut entries = shaped(4, false);
        set_apic_id(&mut entries, 2);
        assert_eq!(leaf(&entries, 1, 0).ebx >> 16, 2 << 8 | 4);
        assert_eq!(leaf(&entries, 4, 0).eax >> 14, 3 << 12, "private cache, four cores");
        assert_eq!(leaf(&entries, 4, 3).eax >> 14, 3 << 12 | 3, "shared cache");
        assert_eq!(leaf(&entries, 0x8000_0008, 0).ecx & 0xf0ff, 0x2003);
        assert_eq!(leaf(&entries, 0x8000_001e, 0).eax, 2);
        assert_eq!(leaf(&entries, 0x8000_001e, 0).ebx & 0xffff, 2);
    }

    #[test]
    fn one_vcpu_is_not_hyperthreaded() {
        let entries = shaped(1, false);
        assert_eq!(leaf(&entries, 1, 0).edx & (1 << 28), 0);
        assert_eq!(leaf(&entries, 0x8000_0001, 0).ecx & 2, 0);
        assert_eq!(leaf(&entries, 0xb, 1).ebx, 1);
    }

    #[test]
    fn hypercalls_and_cmpxchg16b_are_hidden_only_where_ring_0_is_emulated() {
        let cx16 = 1 << 13;
        let send_ipi = 1 << 11;
        let clocks = 1 | 1 << 3 | 1 << 5 | 1 << 24;
        let native = shaped(2, false);
        assert_eq!(leaf(&native, 1, 0).ecx & cx16, cx16);
        assert_eq!(leaf(&native, 0x4000_0001, 0).eax & send_ipi, send_ipi);
        let emulated = shaped(2, true);
        assert_eq!(leaf(&emulated, 1, 0).ecx & cx16, 0);
        assert_eq!(leaf(&emulated, 0x4000_0001, 0).eax & (send_ipi | clocks), clocks);
    }

    #[test]
    fn there_is_no_pmu_and_no_mwait() {
        let entries = shaped(1, false);
        assert_eq!(leaf(&entries, 0xa, 0).eax, 0);
        assert_eq!(leaf(&entries, 1, 0).ecx & (1 << 3), 0);
        assert_eq!(leaf(&entries, 1, 0).ecx & (1 << 31), 1 << 31, "a hypervisor is present");
    }
}
