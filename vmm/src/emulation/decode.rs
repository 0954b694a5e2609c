//! Which instruction it is: the bytes that KVM saw, or else those at RIP.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use kvm_ioctls::VcpuFd;

use super::context::Context;
use super::paging::Access;

/// KVM_INTERNAL_ERROR_EMULATION.
const EMULATION: u32 = 1;
/// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.
const HAS_INSTRUCTION_BYTES: u64 = 1;
/// Longest x86 instruction.
const MAX_LEN: usize = 15;

/// Bytes of an instruction, if KVM told them.
pub type Fetched = Option<([u8; MAX_LEN], usize)>;

/// The bytes that KVM failed on. They count rather than those in memory: another vCPU may have patched
/// the place since. `Err` is the suberror of an internal error that is no emulation failure.
pub fn reported_bytes(vcpu: &mut VcpuFd) -> Result<Fetched, u32> {
    // SAFETY: after KVM_EXIT_INTERNAL_ERROR, `internal` is the union's valid member, and
    // `emulation_failure` is the same with more fields; all of them are plain integers.
    let failure = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.emulation_failure };
    if failure.suberror != EMULATION {
        return Err(failure.suberror);
    }
    // ndata counts the 64-bit words after it; flags is the first, the bytes are the next two.
    if failure.ndata < 3 || failure.flags & HAS_INSTRUCTION_BYTES == 0 {
        return Ok(None);
    }
    // SAFETY: the flag says that these fields are filled.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let len = usize::from(bytes.insn_size).min(MAX_LEN);
    Ok((len > 0).then_some((bytes.insn_bytes, len)))
}

/// Decodes the instruction at RIP and gives its bytes as text for messages.
pub fn decode(context: &mut Context<'_>, fetched: Fetched) -> (Option<Instruction>, String) {
    let (bytes, len) = fetched.unwrap_or_else(|| fetch(context));
    let mut decoder =
        Decoder::with_ip(context.bitness(), &bytes[..len], context.regs.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let text_len = if instruction.is_invalid() { len } else { instruction.len() };
    let mut text = String::with_capacity(text_len * 2);
    for byte in &bytes[..text_len] {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    ((!instruction.is_invalid()).then_some(instruction), text)
}

/// Reads as much of the instruction as is mapped.
fn fetch(context: &mut Context<'_>) -> ([u8; MAX_LEN], usize) {
    let mut bytes = [0; MAX_LEN];
    let rip = context.regs.rip.wrapping_add(context.sregs.cs.base);
    let mut len = 0;
    while len < MAX_LEN
        && context.read(rip.wrapping_add(len as u64), &mut bytes[len..=len], Access::Read).is_ok()
    {
        len += 1;
    }
    (bytes, len)
}
