//! General-register instructions that KVM's emulator lacks.

use iced_x86::{Instruction, MemorySize};

use super::context::Context;
use super::exception::{Exception, Trap};

const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
const ARITHMETIC: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;

/// POPCNT r, r/m.
pub fn popcnt(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let destination = instruction.op0_register();
    let value = context.operand(instruction, 1, destination.size())?;
    context.set_register(destination, u64::from(value.count_ones()));
    context.set_flags(ARITHMETIC, false);
    context.set_flags(ZERO, value == 0);
    Ok(())
}

/// CRC32 r, r/m.
pub fn crc32(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let destination = instruction.op0_register();
    let size = match instruction.memory_size() {
        MemorySize::Unknown => instruction.op1_register().size(),
        memory => memory.size(),
    };
    let value = context.operand(instruction, 1, size)?;
    let crc = crc32c(context.register(destination) as u32, &value.to_le_bytes()[..size.min(8)]);
    context.set_register(destination, u64::from(crc));
    Ok(())
}

/// The reflected CRC-32C step without the customary inversions, as the instruction computes it.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

/// CMPXCHG16B m128, always as if locked.
pub fn cmpxchg16b(context: &mut Context<'_>, instruction: &Instruction) -> Result<(), Trap> {
    let address = context.address(instruction, 0)?;
    if address % 16 != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let expected = pair(context.regs.rdx, context.regs.rax);
    let new = pair(context.regs.rcx, context.regs.rbx);
    let target = context.host_pointer(address, 16)?;
    let found = compare_exchange(target, expected, new).ok_or(Trap::Unsupported)?;
    context.set_flags(ZERO, found == expected);
    if found != expected {
        (context.regs.rax, context.regs.rdx) = (found as u64, (found >> 64) as u64);
    }
    Ok(())
}

/// Atomically replaces `expected` by `new` in guest memory; gives what was there. None without the
/// instruction on this host.
fn compare_exchange(target: *mut u8, expected: u128, new: u128) -> Option<u128> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the feature was just checked. `target` comes from `Context::host_pointer`: 16 bytes within one
    // page of guest RAM, which stays mapped while the vCPU lives; the guest address was checked to be a
    // multiple of 16 and RAM is mapped page by page. RBX, which the compiler keeps, is exchanged back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {new_low}",
            "lock cmpxchg16b [rdi]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            in("rdi") target,
            inout("rax") low,
            inout("rdx") high,
            in("rcx") (new >> 64) as u64,
            options(nostack),
        );
    }
    Some(u128::from(high) << 64 | u128::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_standard_check_value() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn sixteen_bytes_are_exchanged_only_if_they_are_the_expected_ones() {
        #[repr(align(16))]
        struct Aligned(u128);
        let mut memory = Aligned(5 << 64 | 7);
        let target = (&raw mut memory.0).cast();
        assert_eq!(compare_exchange(target, 1, 2), Some(5 << 64 | 7));
        assert_eq!(compare_exchange(target, 5 << 64 | 7, 9 << 64 | 8), Some(5 << 64 | 7));
        assert_eq!(memory.0, 9 << 64 | 8);
    }
}
