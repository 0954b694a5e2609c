//! System instructions: flags, time stamp, TLB, software interrupts.

use iced_x86::Instruction;
use kvm_bindings::{Msrs, kvm_msr_entry};
use vmm_sys_util::errno;

use super::context::Context;
use super::exception::{Exception, HostError, Trap};
use super::paging::Access;

/// Vector of INT1.
pub const DEBUG: u8 = 1;
/// Vector of INT3.
pub const BREAKPOINT: u8 = 3;

const RFLAGS_ALIGNMENT_CHECK: u64 = 1 << 18;
const CR4_TIME_STAMP_DISABLE: u64 = 1 << 2;
const CR4_GLOBAL_PAGES: u64 = 1 << 7;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_AUX: u32 = 0xc000_0103;

/// CLAC and STAC.
pub fn set_alignment_check(context: &mut Context<'_>, on: bool) -> Result<(), Trap> {
    if context.privilege_level() != 0 {
        return Err(Exception::INVALID_OPCODE.into());
    }
    context.set_flags(RFLAGS_ALIGNMENT_CHECK, on);
    Ok(())
}

/// RDTSCP.
pub fn rdtscp(context: &mut Context<'_>) -> Result<(), Trap> {
    if context.privilege_level() != 0 && context.sregs.cr4 & CR4_TIME_STAMP_DISABLE != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let tsc = read_msr(context, MSR_TSC)?;
    context.regs.rcx = read_msr(context, MSR_TSC_AUX)? & 0xffff_ffff;
    context.set_edx_eax(tsc);
    Ok(())
}

/// Value of an MSR. One that this KVM lacks cannot have been written either: it reads as after a reset.
fn read_msr(context: &Context<'_>, index: u32) -> Result<u64, HostError> {
    let call = HostError::of("KVM_GET_MSRS");
    let entry = kvm_msr_entry { index, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| call(errno::Error::new(libc::E2BIG)))?;
    let read = context.vcpu.get_msrs(&mut msrs).map_err(&call)?;
    Ok(msrs.as_slice()[..read].first().map_or(0, |entry| entry.data))
}

/// INVPCID: flushes every translation, which every type of it allows.
///
/// A change of CR4.PGE makes KVM drop its shadow roots (Intel SDM 3A, section 4.10.4.1).
pub fn invpcid(context: &mut Context<'_>) -> Result<(), Trap> {
    context.require_ring_0()?;
    let mut flipped = context.sregs;
    flipped.cr4 ^= CR4_GLOBAL_PAGES;
    for sregs in [&flipped, &context.sregs] {
        context.vcpu.set_sregs(sregs).map_err(HostError::of("KVM_SET_SREGS"))?;
    }
    Ok(())
}

/// CLWB and the like: nothing but the check of the address.
pub fn touch(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let address = context.address(instruction, 0)?;
    context.read(address, &mut [0], Access::Read)
}

/// INT1 and INT3: a trap, so the handler returns to the next instruction.
pub fn software_exception(
    context: &mut Context<'_>,
    instruction: &Instruction,
    vector: u8,
) -> Result<(), Trap> {
    context.regs.rip = instruction.next_ip();
    Err(Exception { vector, error_code: None, address: None }.into())
}

/// INT n.
pub fn software_interrupt(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let mut events = context.vcpu.get_vcpu_events().map_err(HostError::of("KVM_GET_VCPU_EVENTS"))?;
    events.interrupt.injected = 1;
    events.interrupt.nr = instruction.immediate8();
    events.interrupt.soft = 1;
    Ok(context.vcpu.set_vcpu_events(&events).map_err(HostError::of("KVM_SET_VCPU_EVENTS"))?)
}
