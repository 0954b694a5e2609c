//! Which function completes which instruction.

use iced_x86::{Instruction, Mnemonic};

use super::context::Context;
use super::exception::{Exception, Trap};
use super::xsave::{Form, restore, save};
use super::{fpu, integer, segments, system, xsave};

/// Executes `instruction`, all but the step of RIP to the next one.
pub fn execute(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    match instruction.mnemonic() {
        Mnemonic::Xsave => save(context, instruction, Form::Standard { wide: false }),
        Mnemonic::Xsave64 => save(context, instruction, Form::Standard { wide: true }),
        Mnemonic::Xsaveopt => save(context, instruction, Form::Standard { wide: false }),
        Mnemonic::Xsaveopt64 => save(context, instruction, Form::Standard { wide: true }),
        Mnemonic::Xsavec | Mnemonic::Xsaves => save(context, instruction, Form::Compacted { wide: false }),
        Mnemonic::Xsavec64 | Mnemonic::Xsaves64 => save(context, instruction, Form::Compacted { wide: true }),
        Mnemonic::Xrstor | Mnemonic::Xrstors => restore(context, instruction, false),
        Mnemonic::Xrstor64 | Mnemonic::Xrstors64 => restore(context, instruction, true),
        Mnemonic::Xgetbv => xsave::xgetbv(context),
        Mnemonic::Xsetbv => xsave::xsetbv(context),

        Mnemonic::Ldmxcsr => fpu::ldmxcsr(context, instruction),
        Mnemonic::Stmxcsr => fpu::stmxcsr(context, instruction),
        Mnemonic::Fnstsw => fpu::fnstsw(context, instruction),
        Mnemonic::Wait => fpu::wait(context),
        Mnemonic::Emms => fpu::emms(context),

        Mnemonic::Popcnt => integer::popcnt(context, instruction),
        Mnemonic::Crc32 => integer::crc32(context, instruction),
        Mnemonic::Cmpxchg16b => integer::cmpxchg16b(context, instruction),

        Mnemonic::Clac => system::set_alignment_check(context, false),
        Mnemonic::Stac => system::set_alignment_check(context, true),
        Mnemonic::Rdtscp => system::rdtscp(context),
        Mnemonic::Invpcid => system::invpcid(context),
        Mnemonic::Clwb => system::touch(context, instruction),
        Mnemonic::Monitor | Mnemonic::Mwait => context.require_ring_0(),
        Mnemonic::Int3 => system::software_exception(context, instruction, system::BREAKPOINT),
        Mnemonic::Int1 => system::software_exception(context, instruction, system::DEBUG),
        Mnemonic::Int => system::software_interrupt(context, instruction),
        Mnemonic::Ud0 | Mnemonic::Ud1 => Err(Exception::INVALID_OPCODE.into()),

        Mnemonic::Lsl => segments::lsl(context, instruction),
        Mnemonic::Lar => segments::lar(context, instruction),
        Mnemonic::Verr => segments::verify(context, instruction, segments::Verify::Read),
        Mnemonic::Verw => segments::verify(context, instruction, segments::Verify::Write),
        _ => Err(Trap::Unsupported),
    }
}
