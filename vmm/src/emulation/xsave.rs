//! XSAVE, XRSTOR and their relatives, XGETBV and XSETBV.
//!
//! This is what keeps the guest's AVX state right across its task switches: its kernel saves and restores
//! with these instructions in ring 0, its programs use the registers natively in ring 3. Intel SDM 1,
//! sections 13.7 to 13.12; there is no supervisor state, so the S forms equal the C forms.

use iced_x86::Instruction;
use kvm_bindings::kvm_xcrs;

use super::context::Context;
use super::exception::{Exception, HostError, Trap};
use super::paging::Access;
use super::xstate::{
    AVX, Component, EXTENDED, HEADER, Image, MXCSR, MXCSR_INIT, SSE, X87, components, read_u32, read_u64,
};

const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR4_OSXSAVE: u64 = 1 << 18;
/// Bit of XCOMP_BV that says the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// Alignment of an area.
const ALIGNMENT: u64 = 64;

/// Layout of the area that an instruction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Fixed offsets; components not asked for stay untouched.
    Standard {
        /// 64-bit x87 pointers.
        wide: bool,
    },
    /// Components one after the other; those in their initial state are not written.
    Compacted {
        /// 64-bit x87 pointers.
        wide: bool,
    },
}

/// Bytes to be written into an area.
type Piece = (usize, Vec<u8>);

/// The XSAVE family.
pub fn save(context: &mut Context<'_>, instruction: &Instruction, form: Form) -> Result<(), Trap> {
    let area = area(context, instruction)?;
    let requested = context.edx_eax() & xcr0(context)?;
    let image = Image::load(context.vcpu)?;
    let old_header = match form {
        Form::Standard { .. } => {
            let mut bytes = [0; 8];
            context.read(area + HEADER as u64, &mut bytes, Access::Write)?;
            u64::from_le_bytes(bytes)
        }
        Form::Compacted { .. } => 0,
    };
    for (offset, bytes) in pieces(&image, requested, form, old_header, components()) {
        context.write(area + offset as u64, &bytes)?;
    }
    Ok(())
}

/// What an XSAVE instruction writes, from the state in `image`.
fn pieces(image: &Image, requested: u64, form: Form, old: u64, components: &[Component]) -> Vec<Piece> {
    let (compacted, wide) = match form {
        Form::Standard { wide } => (false, wide),
        Form::Compacted { wide } => (true, wide),
    };
    let in_use = image.in_use() & requested;
    let written = if compacted { in_use } else { requested };
    let mut pieces = legacy_pieces(image, written, compacted, wide);
    let mut header = ((old & !requested) | in_use).to_le_bytes().to_vec();
    if compacted {
        header.extend((requested | COMPACTED).to_le_bytes());
    }
    pieces.push((HEADER, header));
    for (component, offset) in placed(components, requested, compacted) {
        if written & (1 << component.number) != 0 {
            let from = component.offset..component.offset + component.size;
            pieces.push((offset, image.bytes()[from].to_vec()));
        }
    }
    pieces
}

fn legacy_pieces(image: &Image, written: u64, compacted: bool, wide: bool) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(8);
    if written & X87 != 0 {
        let mut control = image.bytes()[..MXCSR].to_vec();
        if !wide {
            // The short form has 32-bit pointers and selectors; selectors read as zero on processors that
            // deprecate them.
            control[12..16].fill(0);
            control[20..24].fill(0);
        }
        pieces.push((0, control));
        pieces.push((32, image.bytes()[32..160].to_vec()));
    }
    let mxcsr = if compacted { SSE } else { SSE | AVX };
    if written & mxcsr != 0 {
        pieces.push((MXCSR, image.bytes()[MXCSR..MXCSR + 8].to_vec()));
    }
    if written & SSE != 0 {
        pieces.push((160, image.bytes()[160..416].to_vec()));
    }
    pieces
}

/// Extended components of `mask` and where they are in an area.
fn placed(components: &[Component], mask: u64, compacted: bool) -> impl Iterator<Item = (Component, usize)> {
    let mut next = EXTENDED;
    components.iter().filter(move |component| mask & (1 << component.number) != 0).map(move |component| {
        if !compacted {
            return (*component, component.offset);
        }
        let offset = if component.aligned { next.next_multiple_of(64) } else { next };
        next = offset + component.size;
        (*component, offset)
    })
}

/// XRSTOR and XRSTORS.
pub fn restore(context: &mut Context<'_>, instruction: &Instruction, wide: bool) -> Result<(), Trap> {
    let area = area(context, instruction)?;
    let xcr0 = xcr0(context)?;
    let requested = context.edx_eax() & xcr0;
    let mut legacy = [0; EXTENDED];
    context.read(area, &mut legacy, Access::Read)?;
    let header = Header::parse(&legacy, xcr0).ok_or(Exception::GENERAL_PROTECTION)?;
    let mut image = Image::load(context.vcpu)?;
    restore_legacy(&mut image, &legacy, requested, header, wide).ok_or(Exception::GENERAL_PROTECTION)?;
    let in_area = if header.compacted { header.format } else { xcr0 };
    for (component, offset) in placed(components(), in_area, header.compacted) {
        let bit = 1 << component.number;
        if requested & bit == 0 {
            continue;
        }
        if header.present & bit != 0 {
            let mut bytes = vec![0; component.size];
            context.read(area + offset as u64, &mut bytes, Access::Read)?;
            image.put(component.offset, &bytes);
        }
        image.mark(bit, header.present & bit != 0);
    }
    // Requested components that a compacted area has no room for go to their initial state.
    image.mark(requested & !in_area & !(X87 | SSE), false);
    image.store(context.vcpu)
}

/// Header of an area that is being restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// XSTATE_BV.
    present: u64,
    /// XCOMP_BV without its top bit.
    format: u64,
    compacted: bool,
}

impl Header {
    /// Checks it as the processor does; None means #GP.
    fn parse(area: &[u8; EXTENDED], xcr0: u64) -> Option<Header> {
        let present = read_u64(area, HEADER);
        let compaction = read_u64(area, HEADER + 8);
        let compacted = compaction & COMPACTED != 0;
        let format = compaction & !COMPACTED;
        let reserved = if compacted { HEADER + 16..EXTENDED } else { HEADER + 8..HEADER + 24 };
        let allowed = if compacted { format } else { xcr0 };
        let valid = area[reserved].iter().all(|byte| *byte == 0);
        let valid = valid && format & !xcr0 == 0 && present & !allowed == 0;
        valid.then_some(Header { present, format, compacted })
    }
}

/// Restores x87, SSE and MXCSR; None for a reserved bit of MXCSR.
fn restore_legacy(
    image: &mut Image,
    area: &[u8; EXTENDED],
    requested: u64,
    header: Header,
    wide: bool,
) -> Option<()> {
    if requested & X87 != 0 {
        if header.present & X87 != 0 {
            let mut control = [0; MXCSR];
            control.copy_from_slice(&area[..MXCSR]);
            if !wide {
                control[12..16].fill(0);
                control[20..24].fill(0);
            }
            image.put(0, &control);
            image.put(32, &area[32..160]);
            image.mark(X87, true);
        } else {
            image.reset_x87();
        }
    }
    if requested & SSE != 0 {
        if header.present & SSE != 0 {
            image.put(160, &area[160..416]);
            image.mark(SSE, true);
        } else {
            image.reset_sse();
        }
    }
    let saved = read_u32(area, MXCSR);
    match header.compacted {
        false if requested & (SSE | AVX) != 0 => image.set_mxcsr(saved),
        true if requested & SSE != 0 && header.present & SSE != 0 => image.set_mxcsr(saved),
        true if requested & SSE != 0 => image.set_mxcsr(MXCSR_INIT),
        _ => Some(()),
    }
}

/// XGETBV.
pub fn xgetbv(context: &mut Context<'_>) -> Result<(), Trap> {
    check_enabled(context)?;
    let value = match context.regs.rcx as u32 {
        0 => xcr0(context)?,
        1 => xcr0(context)? & Image::load(context.vcpu)?.in_use(),
        _ => return Err(Exception::GENERAL_PROTECTION.into()),
    };
    context.set_edx_eax(value);
    Ok(())
}

/// XSETBV; KVM checks the value against what the vCPU's CPUID offers.
pub fn xsetbv(context: &mut Context<'_>) -> Result<(), Trap> {
    check_enabled(context)?;
    context.require_ring_0()?;
    if context.regs.rcx as u32 != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = context.edx_eax();
    context.vcpu.set_xcrs(&xcrs).map_err(|error| match error.errno() {
        libc::EINVAL => Trap::Exception(Exception::GENERAL_PROTECTION),
        _ => HostError::of("KVM_SET_XCRS")(error).into(),
    })
}

fn xcr0(context: &Context<'_>) -> Result<u64, HostError> {
    let xcrs = context.vcpu.get_xcrs().map_err(HostError::of("KVM_GET_XCRS"))?;
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    Ok(xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0).map_or(X87, |xcr| xcr.value))
}

fn check_enabled(context: &Context<'_>) -> Result<(), Exception> {
    if context.sregs.cr4 & CR4_OSXSAVE == 0 { Err(Exception::INVALID_OPCODE) } else { Ok(()) }
}

/// Address of the area, after the checks that all these instructions make.
fn area(context: &Context<'_>, instruction: &Instruction) -> Result<u64, Trap> {
    check_enabled(context)?;
    if context.sregs.cr0 & CR0_TASK_SWITCHED != 0 {
        return Err(Exception::DEVICE_NOT_AVAILABLE.into());
    }
    let address = context.address(instruction, 0)?;
    if address % ALIGNMENT != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPONENTS: [Component; 2] = [
        Component { number: 2, offset: 576, size: 256, aligned: false },
        Component { number: 5, offset: 1088, size: 64, aligned: true },
    ];
    const ALL: u64 = X87 | SSE | AVX | 1 << 5;

    fn area_with(present: u64, compaction: u64) -> [u8; EXTENDED] {
        let mut area = [0; EXTENDED];
        area[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
        area[HEADER + 8..HEADER + 16].copy_from_slice(&compaction.to_le_bytes());
        area
    }

    #[test]
    fn compacted_components_follow_each_other_aligned() {
        let offsets = |mask, compacted| -> Vec<usize> {
            placed(&COMPONENTS, mask, compacted).map(|(_, offset)| offset).collect()
        };
        assert_eq!(offsets(ALL, false), [576, 1088]);
        assert_eq!(offsets(ALL, true), [576, 832]);
        assert_eq!(offsets(1 << 5, true), [576]);
    }

    #[test]
    fn headers_are_checked_as_the_processor_does() {
        let parse = |area: &[u8; EXTENDED]| Header::parse(area, ALL);
        assert_eq!(parse(&area_with(AVX, 0)), Some(Header { present: AVX, format: 0, compacted: false }));
        assert!(parse(&area_with(AVX, COMPACTED | AVX)).is_some());
        assert_eq!(parse(&area_with(1 << 9, 0)), None, "component not in XCR0");
        assert_eq!(parse(&area_with(AVX, COMPACTED)), None, "present but not in the format");
        assert_eq!(parse(&area_with(0, COMPACTED | 1 << 9)), None, "format not in XCR0");
        assert_eq!(parse(&area_with(0, AVX)), None, "format without the compaction bit");
        let mut reserved = area_with(0, 0);
        reserved[HEADER + 20] = 1;
        assert_eq!(parse(&reserved), None);
    }
}
