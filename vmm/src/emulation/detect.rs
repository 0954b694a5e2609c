//! Does this host's KVM emulate guest ring 0? Asked, never assumed.
//!
//! A processor without VT-x and AMD-V cannot run ring 0 natively, so its KVM emulates. Where one of them is
//! there and the only KVM module is the one that uses it, KVM does not emulate: only one such module can be
//! active. In every other case a throw-away VM runs one instruction that KVM's emulator does not know: on
//! hardware it is executed, under emulation KVM_RUN ends with an internal error.

use std::arch::x86_64::__cpuid;
use std::path::Path;
use std::sync::OnceLock;

use arch::{boot_state, layout};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::errno;

use crate::memory::{self, MemoryError};

/// Where the probe's code lies.
const PROBE_ADDRESS: u64 = 0x1000;
/// `popcnt rax, rax; out 0x80, al`.
const PROBE: [u8; 7] = [0xf3, 0x48, 0x0f, 0xb8, 0xc0, 0xe6, PROBE_PORT as u8];
const PROBE_PORT: u16 = 0x80;

const CPUID_1_ECX_VMX: u32 = 1 << 5;
const CPUID_8000_0001_ECX_SVM: u32 = 1 << 2;

/// Why the question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The probe's memory could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The probe could not be put into memory.
    #[error("cannot write the probe for emulated ring 0")]
    Write(#[from] GuestMemoryError),
    /// A KVM call failed.
    #[error("cannot run the probe for emulated ring 0")]
    Kvm(#[from] errno::Error),
    /// The probe ended in a third way.
    #[error("the probe for emulated ring 0 ended with the exit {exit}")]
    UnexpectedExit {
        /// The exit.
        exit: String,
    },
}

/// True where guest ring 0 is emulated.
pub fn emulated_ring0(kvm: &Kvm) -> Result<bool, DetectError> {
    let (basic, extended) = (__cpuid(1), __cpuid(0x8000_0001));
    let intel = basic.ecx & CPUID_1_ECX_VMX != 0;
    let amd = extended.ecx & CPUID_8000_0001_ECX_SVM != 0;
    if !intel && !amd {
        return Ok(true);
    }
    let Modules { kvm_intel, kvm_amd, kvm_pvm } = *modules();
    let hardware_module = (intel && kvm_intel) || (amd && kvm_amd);
    if hardware_module && !kvm_pvm {
        return Ok(false);
    }
    probe(kvm)
}

/// Modules of KVM that are there.
pub struct Modules {
    kvm_intel: bool,
    kvm_amd: bool,
    kvm_pvm: bool,
}

/// Looked at once, the first time before the process is confined: a cage has no `/sys`.
pub fn modules() -> &'static Modules {
    static MODULES: OnceLock<Modules> = OnceLock::new();
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    MODULES.get_or_init(|| Modules {
        kvm_intel: loaded("kvm_intel"),
        kvm_amd: loaded("kvm_amd"),
        kvm_pvm: loaded("kvm_pvm"),
    })
}

/// Runs the probe in a VM of its own: a vCPU's CPUID, which depends on the answer, is fixed once it ran.
pub fn probe(kvm: &Kvm) -> Result<bool, DetectError> {
    let memory = memory::allocate(layout::MIN_MEMORY_MIB)?;
    let vm = kvm.create_vm()?;
    memory::register(&vm, &memory, false)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    vcpu.set_cpuid2(&cpuid)?;
    arch::page_tables::write(&memory)?;
    memory.write_slice(&PROBE, GuestAddress(PROBE_ADDRESS))?;
    let mut sregs = vcpu.get_sregs()?;
    boot_state::set_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&boot_state::regs(PROBE_ADDRESS))?;
    match vcpu.run()? {
        VcpuExit::IoOut(PROBE_PORT, _) => Ok(false),
        VcpuExit::InternalError => Ok(true),
        other => Err(DetectError::UnexpectedExit { exit: format!("{other:?}") }),
    }
}
