//! Instructions that look at a segment descriptor without loading it.
//!
//! Intel SDM 2A, LAR and LSL; SDM 2B, VERR and VERW. Each says by ZF whether the selector is good.

use iced_x86::{Instruction, Register};

use super::context::Context;
use super::exception::Trap;
use super::paging::Access;

const RFLAGS_ZERO: u64 = 1 << 6;
const SELECTOR_LOCAL: u64 = 1 << 2;

/// What VERR and VERW ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// The segment may be read.
    Read,
    /// The segment may be written.
    Write,
}

/// LSL r, r/m16: the segment's limit in bytes.
pub fn lsl(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let descriptor = operand(context, instruction, 1)?.filter(|descriptor| descriptor.has_limit());
    answer(context, instruction.op0_register(), descriptor.map(Descriptor::limit));
    Ok(())
}

/// LAR r, r/m16: the segment's access rights.
pub fn lar(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let descriptor = operand(context, instruction, 1)?.filter(|descriptor| descriptor.has_rights());
    answer(context, instruction.op0_register(), descriptor.map(Descriptor::rights));
    Ok(())
}

/// VERR and VERW r/m16.
pub fn verify(context: &mut Context<'_>, instruction: &Instruction, what: Verify) -> Result<(), Trap> {
    let descriptor = operand(context, instruction, 0)?;
    context.set_flags(RFLAGS_ZERO, descriptor.is_some_and(|descriptor| descriptor.allows(what)));
    Ok(())
}

fn answer(context: &mut Context<'_>, destination: Register, value: Option<u64>) {
    context.set_flags(RFLAGS_ZERO, value.is_some());
    if let Some(value) = value {
        context.set_register(destination, value);
    }
}

/// The descriptor that operand `index` selects, if the current and the requested privilege may see it.
fn operand(
    context: &mut Context<'_>,
    instruction: &Instruction,
    index: u32,
) -> Result<Option<Descriptor>, Trap> {
    let selector = context.operand(instruction, index, 2)? & 0xffff;
    let local = selector & SELECTOR_LOCAL != 0;
    let (base, limit) = if local {
        (context.sregs.ldt.base, u64::from(context.sregs.ldt.limit))
    } else {
        (context.sregs.gdt.base, u64::from(context.sregs.gdt.limit))
    };
    let offset = selector & !7;
    if selector & !3 == 0 || offset + 7 > limit {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    context.read(base.wrapping_add(offset), &mut bytes, Access::Read)?;
    let descriptor = Descriptor(u64::from_le_bytes(bytes));
    let privilege = context.privilege_level().max((selector & 3) as u8);
    Ok(descriptor.is_visible_to(privilege).then_some(descriptor))
}

/// A descriptor of the GDT or LDT (Intel SDM 3A, section 3.4.5).
#[derive(Clone, Copy)]
struct Descriptor(u64);

impl Descriptor {
    fn kind(self) -> u64 {
        (self.0 >> 40) & 0xf
    }

    /// Code or data, not a system descriptor.
    fn is_segment(self) -> bool {
        self.0 & (1 << 44) != 0
    }

    fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }

    fn is_visible_to(self, privilege: u8) -> bool {
        let conforming = self.is_code() && self.kind() & 4 != 0;
        conforming || (self.0 >> 45) as u8 & 3 >= privilege
    }

    /// System descriptors with a limit in long mode: LDT and TSS.
    fn has_limit(self) -> bool {
        self.is_segment() || matches!(self.kind(), 2 | 9 | 11)
    }

    /// The same and call gates.
    fn has_rights(self) -> bool {
        self.has_limit() || self.kind() == 12
    }

    fn allows(self, what: Verify) -> bool {
        let writable_or_readable = self.kind() & 2 != 0;
        match what {
            Verify::Read => self.is_segment() && (!self.is_code() || writable_or_readable),
            Verify::Write => self.is_segment() && !self.is_code() && writable_or_readable,
        }
    }

    fn limit(self) -> u64 {
        let limit = (self.0 & 0xffff) | ((self.0 >> 32) & 0xf_0000);
        if self.0 & (1 << 55) != 0 { limit << 12 | 0xfff } else { limit }
    }

    fn rights(self) -> u64 {
        (self.0 >> 32) & 0x00f0_ff00
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: Descriptor = Descriptor(0x00af_9b00_0000_ffff);
    const USER_DATA: Descriptor = Descriptor(0x00cf_f300_0000_ffff);
    const TSS: Descriptor = Descriptor(0x0000_8b00_1000_0067);

    #[test]
    fn limits_count_in_bytes() {
        assert_eq!((CODE.limit(), TSS.limit()), (0xffff_ffff, 0x67));
        assert!(TSS.has_limit() && TSS.has_rights());
        assert_eq!(CODE.rights(), 0x00a0_9b00);
    }

    #[test]
    fn code_cannot_be_written_and_kernel_segments_are_hidden_from_users() {
        assert!(CODE.allows(Verify::Read) && !CODE.allows(Verify::Write));
        assert!(USER_DATA.allows(Verify::Write) && !TSS.allows(Verify::Read));
        assert!(!CODE.is_visible_to(3) && USER_DATA.is_visible_to(3) && CODE.is_visible_to(0));
    }
}
