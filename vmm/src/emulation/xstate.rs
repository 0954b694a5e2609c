//! The vCPU's extended state as KVM hands it out: an XSAVE area in standard format.
//!
//! Intel SDM 1, chapter 13. KVM_GET_XSAVE uses the layout of the host processor, the same that the guest
//! learns from CPUID leaf 0xD.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use super::exception::{Exception, HostError, Trap};

/// Bit of the x87 component.
pub const X87: u64 = 1 << 0;
/// Bit of the SSE component.
pub const SSE: u64 = 1 << 1;
/// Bit of the AVX component.
pub const AVX: u64 = 1 << 2;

/// Offset of the header in an area.
pub const HEADER: usize = 512;
/// Where extended components begin.
pub const EXTENDED: usize = 576;
/// Size of KVM's area.
const IMAGE_LEN: usize = 4096;
/// MXCSR and MXCSR_MASK within the legacy region.
pub const MXCSR: usize = 24;
/// MXCSR after a reset.
pub const MXCSR_INIT: u32 = 0x1f80;
/// Bits of MXCSR that exist where the processor reports no mask.
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;
/// x87 control word after FNINIT.
const FCW_INIT: u16 = 0x37f;

/// One component beyond x87 and SSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Its number, the bit in XCR0.
    pub number: u32,
    /// Offset in the standard format.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// In the compacted format it begins at a multiple of 64.
    pub aligned: bool,
}

/// The extended components of this host that fit KVM's area, by ascending number.
pub fn components() -> &'static [Component] {
    static COMPONENTS: OnceLock<Vec<Component>> = OnceLock::new();
    COMPONENTS.get_or_init(|| {
        (2..63).filter_map(host_component).filter(|found| found.offset + found.size <= IMAGE_LEN).collect()
    })
}

fn host_component(number: u32) -> Option<Component> {
    let leaf = __cpuid_count(0xd, number);
    let supervisor = leaf.ecx & 1 != 0;
    let found =
        Component { number, offset: leaf.ebx as usize, size: leaf.eax as usize, aligned: leaf.ecx & 2 != 0 };
    (leaf.eax != 0 && !supervisor && found.offset >= EXTENDED).then_some(found)
}

/// The extended state of one vCPU.
pub struct Image(Box<[u8; IMAGE_LEN]>);

impl Image {
    /// Reads it from `vcpu`.
    pub fn load(vcpu: &VcpuFd) -> Result<Self, HostError> {
        let xsave = vcpu.get_xsave().map_err(HostError::of("KVM_GET_XSAVE"))?;
        let mut bytes = Box::new([0; IMAGE_LEN]);
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(xsave.region) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Image(bytes))
    }

    /// Writes it to `vcpu`; #GP where the processor would refuse the values.
    pub fn store(&self, vcpu: &VcpuFd) -> Result<(), Trap> {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        // SAFETY: KVM reads more than `kvm_xsave` only for features that a process must ask for through
        // arch_prctl (AMX), which nothing here does.
        unsafe { vcpu.set_xsave(&xsave) }.map_err(|error| match error.errno() {
            libc::EINVAL => Trap::Exception(Exception::GENERAL_PROTECTION),
            _ => HostError::of("KVM_SET_XSAVE")(error).into(),
        })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// XINUSE: components that are not in their initial state.
    pub fn in_use(&self) -> u64 {
        let header = read_u64(self.bytes(), HEADER);
        if self.mxcsr() == MXCSR_INIT { header } else { header | SSE }
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        read_u32(self.bytes(), MXCSR)
    }

    /// Sets MXCSR; None where a reserved bit is set.
    pub fn set_mxcsr(&mut self, value: u32) -> Option<()> {
        let mask = match read_u32(self.bytes(), MXCSR + 4) {
            0 => MXCSR_MASK_DEFAULT,
            mask => mask,
        };
        if value & !mask != 0 {
            return None;
        }
        self.0[MXCSR..MXCSR + 4].copy_from_slice(&value.to_le_bytes());
        // KVM takes MXCSR only together with a component that it belongs to.
        self.mark(SSE, true);
        Some(())
    }

    /// x87 status word.
    pub fn x87_status(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// Marks every x87 register empty.
    pub fn empty_x87_tags(&mut self) {
        self.0[4] = 0;
        self.mark(X87, true);
    }

    /// Puts bytes at `offset`, both inside one component.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Puts the x87 component into its initial state. MXCSR stays.
    pub fn reset_x87(&mut self) {
        self.0[..MXCSR].fill(0);
        self.0[32..160].fill(0);
        self.0[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
        self.mark(X87, false);
    }

    /// Zeroes the SSE registers.
    pub fn reset_sse(&mut self) {
        self.0[160..416].fill(0);
    }

    /// Records that the components `mask` are in use, or in their initial state.
    pub fn mark(&mut self, mask: u64, in_use: bool) {
        let header = read_u64(self.bytes(), HEADER);
        let header = if in_use { header | mask } else { header & !mask };
        self.0[HEADER..HEADER + 8].copy_from_slice(&header.to_le_bytes());
    }
}

/// Little-endian value at `offset` of an area; the caller knows that it is there.
pub fn read_u32(bytes: &[u8], offset: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(value)
}

/// Little-endian value at `offset` of an area; the caller knows that it is there.
pub fn read_u64(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_of_this_host_do_not_overlap() {
        let mut end = EXTENDED;
        let mut by_offset = components().to_vec();
        by_offset.sort_by_key(|component| component.offset);
        for component in by_offset {
            assert!(component.offset >= end, "{component:?}");
            end = component.offset + component.size;
        }
    }

    #[test]
    fn reserved_mxcsr_bits_are_refused() {
        let mut image = Image(Box::new([0; IMAGE_LEN]));
        assert_eq!(image.set_mxcsr(1 << 16), None);
        assert_eq!(image.set_mxcsr(MXCSR_INIT), Some(()));
        assert_eq!((image.mxcsr(), image.in_use()), (MXCSR_INIT, SSE));
    }

    #[test]
    fn a_reset_x87_has_all_exceptions_masked() {
        let mut image = Image(Box::new([0xff; IMAGE_LEN]));
        image.reset_x87();
        assert_eq!(image.bytes()[..2], FCW_INIT.to_le_bytes());
        assert_eq!((image.x87_status(), image.in_use() & X87), (0, 0));
        assert_eq!(image.mxcsr(), u32::MAX, "MXCSR is not x87 state");
    }
}
