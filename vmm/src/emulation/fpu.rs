//! x87 and SSE control instructions, on the vCPU's extended state.

use iced_x86::{Instruction, OpKind, Register};

use super::context::Context;
use super::exception::{Exception, Trap};
use super::paging::Access;
use super::xstate::{self, Image};

const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_EMULATION: u64 = 1 << 2;
const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
/// Exception summary in the x87 status word.
const STATUS_EXCEPTION: u16 = 1 << 7;

/// LDMXCSR m32.
pub fn ldmxcsr(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    check_sse(context)?;
    let mut bytes = [0; 4];
    let address = context.address(instruction, 0)?;
    context.read(address, &mut bytes, Access::Read)?;
    let mut image = Image::load(context.vcpu)?;
    image.set_mxcsr(u32::from_le_bytes(bytes)).ok_or(Exception::GENERAL_PROTECTION)?;
    image.store(context.vcpu)
}

/// STMXCSR m32.
pub fn stmxcsr(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    check_sse(context)?;
    let mxcsr = Image::load(context.vcpu)?.mxcsr();
    let address = context.address(instruction, 0)?;
    context.write(address, &mxcsr.to_le_bytes())
}

/// FNSTSW AX or m16.
pub fn fnstsw(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    check_x87(context)?;
    let status = Image::load(context.vcpu)?.x87_status();
    if instruction.op0_kind() == OpKind::Register {
        context.set_register(Register::AX, u64::from(status));
        return Ok(());
    }
    let address = context.address(instruction, 0)?;
    context.write(address, &status.to_le_bytes())
}

/// FWAIT: raises a pending x87 exception.
pub fn wait(context: &mut Context<'_>) -> Result<(), Trap> {
    const BOTH: u64 = CR0_MONITOR_COPROCESSOR | CR0_TASK_SWITCHED;
    if context.sregs.cr0 & BOTH == BOTH {
        return Err(Exception::DEVICE_NOT_AVAILABLE.into());
    }
    check_pending(&Image::load(context.vcpu)?)
}

/// EMMS: marks the x87 registers empty.
pub fn emms(context: &mut Context<'_>) -> Result<(), Trap> {
    if context.sregs.cr0 & CR0_EMULATION != 0 {
        return Err(Exception::INVALID_OPCODE.into());
    }
    check_x87(context)?;
    let mut image = Image::load(context.vcpu)?;
    check_pending(&image)?;
    image.empty_x87_tags();
    image.store(context.vcpu)
}

fn check_pending(image: &Image) -> Result<(), Trap> {
    if image.in_use() & xstate::X87 != 0 && image.x87_status() & STATUS_EXCEPTION != 0 {
        return Err(Exception::FLOATING_POINT.into());
    }
    Ok(())
}

fn check_x87(context: &Context<'_>) -> Result<(), Exception> {
    if context.sregs.cr0 & (CR0_EMULATION | CR0_TASK_SWITCHED) != 0 {
        return Err(Exception::DEVICE_NOT_AVAILABLE);
    }
    Ok(())
}

fn check_sse(context: &Context<'_>) -> Result<(), Exception> {
    if context.sregs.cr0 & CR0_EMULATION != 0 || context.sregs.cr4 & CR4_OSFXSR == 0 {
        return Err(Exception::INVALID_OPCODE);
    }
    if context.sregs.cr0 & CR0_TASK_SWITCHED != 0 {
        return Err(Exception::DEVICE_NOT_AVAILABLE);
    }
    Ok(())
}
