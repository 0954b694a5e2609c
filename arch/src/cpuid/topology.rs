//! One socket of `vcpus` single-threaded cores, told the same way by every leaf that tells it.
//!
//! Intel SDM 2A, CPUID leaves 1, 4, 0xB and 0x1F; AMD APM 3, appendix E, leaves 0x8000_0001,
//! 0x8000_0008, 0x8000_001D and 0x8000_001E. APIC IDs are the vCPU numbers.

use kvm_bindings::kvm_cpuid_entry2;

use super::{SIGNIFICANT_INDEX, set_bits};

/// Leaf 1 EDX: several logical processors may be told apart.
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: the logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Level types of leaf 0xB, in ECX bits 15..8.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// The cache subleaf (leaves 4 and 0x8000_001D) from which on all cores share one cache: the last level.
const SHARED_CACHE_SUBLEAF: u32 = 3;

/// Rewrites the topology leaves of `entries` for APIC ID 0.
pub(super) fn describe(entries: &mut Vec<kvm_cpuid_entry2>, vcpus: u8) {
    let vcpus = u32::from(vcpus.max(1));
    // Extended topology of AMD (0x8000_0026) and Intel (0x1F) have levels that this machine lacks.
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026));
    for entry in entries.iter_mut() {
        describe_leaf(entry, vcpus);
    }
    entries.extend(extended_topology(vcpus));
    set_apic_id(entries, 0);
}

fn describe_leaf(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    let last = vcpus - 1;
    match entry.function {
        1 => {
            set_bits(&mut entry.ebx, 0xff << 16, vcpus << 16);
            set_bits(&mut entry.edx, HYPER_THREADING, if vcpus > 1 { HYPER_THREADING } else { 0 });
        }
        4 if entry.eax & 0x1f != 0 => {
            set_bits(&mut entry.eax, 0x3f << 26, last << 26);
            set_bits(&mut entry.eax, 0xfff << 14, sharing(entry.index, last) << 14);
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            set_bits(&mut entry.eax, 0xfff << 14, sharing(entry.index, last) << 14);
        }
        0x8000_0001 => set_bits(&mut entry.ecx, CMP_LEGACY, if vcpus > 1 { CMP_LEGACY } else { 0 }),
        0x8000_0008 => set_bits(&mut entry.ecx, 0xf0ff, apic_id_bits(vcpus) << 12 | last),
        // One thread a core, one node.
        0x8000_001e => (entry.ebx, entry.ecx) = (0, 0),
        _ => (),
    }
}

/// Logical processors sharing the cache of `subleaf`, minus one.
fn sharing(subleaf: u32, last: u32) -> u32 {
    if subleaf >= SHARED_CACHE_SUBLEAF { last } else { 0 }
}

fn extended_topology(vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: SIGNIFICANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, apic_id_bits(vcpus), vcpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

/// Bits that hold the numbers 0 to `vcpus` - 1.
fn apic_id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Puts `apic_id` into every leaf that names it.
pub(super) fn set_apic_id(entries: &mut [kvm_cpuid_entry2], apic_id: u32) {
    for entry in entries {
        match entry.function {
            1 => set_bits(&mut entry.ebx, 0xff << 24, apic_id << 24),
            0xb => entry.edx = apic_id,
            0x8000_001e => {
                entry.eax = apic_id;
                set_bits(&mut entry.ebx, 0xff, apic_id);
            }
            _ => (),
        }
    }
}
