//! Feature bits: what this machine does not offer is cleared.

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1 ECX.
const MONITOR: u32 = 1 << 3;
const PDCM: u32 = 1 << 15;
const CMPXCHG16B: u32 = 1 << 13;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 6 EAX: the APIC timer runs in every power state.
const ALWAYS_RUNNING_APIC_TIMER: u32 = 1 << 2;
/// Leaf 0x8000_0001 ECX: performance counter extensions (core, NB, LLC).
const AMD_PERF_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// KVM's paravirtual features (leaf 0x4000_0001 EAX) that make the guest issue a hypercall or wait for an
/// asynchronous page fault; see Linux, `Documentation/virt/kvm/x86/cpuid.rst`.
///
/// Where ring 0 is emulated, `vmcall` never returns. Clocks, steal time, PV EOI and PV TLB flush remain.
const NEEDS_HYPERCALL_OR_ASYNC_FAULT: u32 = ASYNC_PF
    | PV_UNHALT
    | ASYNC_PF_VMEXIT
    | PV_SEND_IPI
    | PV_SCHED_YIELD
    | ASYNC_PF_INT
    | HC_MAP_GPA_RANGE
    | MIGRATION_CONTROL;
const ASYNC_PF: u32 = 1 << 4;
const PV_UNHALT: u32 = 1 << 7;
const ASYNC_PF_VMEXIT: u32 = 1 << 10;
const PV_SEND_IPI: u32 = 1 << 11;
const PV_SCHED_YIELD: u32 = 1 << 13;
const ASYNC_PF_INT: u32 = 1 << 14;
const HC_MAP_GPA_RANGE: u32 = 1 << 16;
const MIGRATION_CONTROL: u32 = 1 << 17;

/// Applies the machine's limits to every entry.
pub(super) fn restrict(entries: &mut [kvm_cpuid_entry2], emulated_ring0: bool) {
    for entry in entries {
        match entry.function {
            1 => {
                entry.ecx &= !(MONITOR | PDCM);
                entry.ecx |= HYPERVISOR | TSC_DEADLINE;
                if emulated_ring0 {
                    entry.ecx &= !CMPXCHG16B;
                }
            }
            6 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (ALWAYS_RUNNING_APIC_TIMER, 0, 0, 0);
            }
            // No performance counters: Intel's and AMD's PMU leaves.
            0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 => entry.ecx &= !AMD_PERF_COUNTERS,
            0x4000_0001 if emulated_ring0 => entry.eax &= !NEEDS_HYPERCALL_OR_ASYNC_FAULT,
            _ => (),
        }
    }
}
