//! One instruction's view of its vCPU: registers, flags, memory through the guest's page tables.

use devices::GuestRam;
use iced_x86::{Instruction, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::exception::{Exception, HostError, Trap};
use super::paging::{Access, Paging};

const PAGE_SIZE: u64 = 4096;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Registers at the instruction, and the way to memory. Changes to `regs` take effect in `finish` or `raise`.
pub struct Context<'a> {
    /// The vCPU, for state other than the general and segment registers.
    pub vcpu: &'a VcpuFd,
    /// General registers, RIP and flags.
    pub regs: kvm_regs,
    /// Segment and control registers, read only here.
    pub sregs: kvm_sregs,
    memory: &'a GuestRam,
}

impl<'a> Context<'a> {
    /// Reads the registers of a vCPU that is outside KVM_RUN.
    pub fn load(vcpu: &'a VcpuFd, memory: &'a GuestRam) -> Result<Self, HostError> {
        let regs = vcpu.get_regs().map_err(HostError::of("KVM_GET_REGS"))?;
        let sregs = vcpu.get_sregs().map_err(HostError::of("KVM_GET_SREGS"))?;
        Ok(Context { vcpu, regs, sregs, memory })
    }

    /// Ends a completed instruction: RIP goes to the next one.
    pub fn finish(&mut self, instruction: &Instruction) -> Result<(), HostError> {
        self.regs.rip = instruction.next_ip();
        self.vcpu.set_regs(&self.regs).map_err(HostError::of("KVM_SET_REGS"))
    }

    /// Raises `exception` at the current RIP.
    pub fn raise(&mut self, exception: Exception) -> Result<(), HostError> {
        if let Some(address) = exception.address {
            self.sregs.cr2 = address;
            self.vcpu.set_sregs(&self.sregs).map_err(HostError::of("KVM_SET_SREGS"))?;
        }
        self.vcpu.set_regs(&self.regs).map_err(HostError::of("KVM_SET_REGS"))?;
        let mut events = self.vcpu.get_vcpu_events().map_err(HostError::of("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = u8::from(exception.error_code.is_some());
        events.exception.error_code = exception.error_code.unwrap_or(0);
        self.vcpu.set_vcpu_events(&events).map_err(HostError::of("KVM_SET_VCPU_EVENTS"))
    }

    /// 16, 32 or 64: the size of code at RIP.
    pub fn bitness(&self) -> u32 {
        match (self.sregs.efer & EFER_LONG_MODE_ACTIVE != 0 && self.sregs.cs.l != 0, self.sregs.cs.db) {
            (true, _) => 64,
            (false, 0) => 16,
            (false, _) => 32,
        }
    }

    /// Current privilege level.
    pub fn privilege_level(&self) -> u8 {
        self.sregs.ss.dpl
    }

    /// #GP(0) unless the code runs in ring 0.
    pub fn require_ring_0(&self) -> Result<(), Trap> {
        if self.privilege_level() == 0 { Ok(()) } else { Err(Exception::GENERAL_PROTECTION.into()) }
    }

    /// Value of a general register, zero-extended.
    pub fn register(&self, register: Register) -> u64 {
        let full = self.full(register);
        match register.size() {
            8 => full,
            4 => full & 0xffff_ffff,
            2 => full & 0xffff,
            _ if is_high_byte(register) => (full >> 8) & 0xff,
            _ => full & 0xff,
        }
    }

    /// Sets a general register; writing the 32-bit half clears the upper one.
    pub fn set_register(&mut self, register: Register, value: u64) {
        let full = self.full(register);
        let value = match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => (full & !0xffff) | (value & 0xffff),
            _ if is_high_byte(register) => (full & !0xff00) | ((value & 0xff) << 8),
            _ => (full & !0xff) | (value & 0xff),
        };
        *self.slot(register) = value;
    }

    /// EDX:EAX, the operand of the extended-state instructions.
    pub fn edx_eax(&self) -> u64 {
        (self.regs.rdx << 32) | (self.regs.rax & 0xffff_ffff)
    }

    /// Sets EDX:EAX.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.set_register(Register::EAX, value);
        self.set_register(Register::EDX, value >> 32);
    }

    /// Sets or clears the flags `mask`.
    pub fn set_flags(&mut self, mask: u64, on: bool) {
        self.regs.rflags = if on { self.regs.rflags | mask } else { self.regs.rflags & !mask };
    }

    /// Linear address of memory operand `operand`.
    pub fn address(&self, instruction: &Instruction, operand: u32) -> Result<u64, Trap> {
        let address =
            instruction.virtual_address(operand, 0, |register, _, _| Some(self.address_part(register)));
        let address = address.ok_or(Trap::Unsupported)?;
        if self.paging().is_canonical(address) {
            Ok(address)
        } else {
            Err(Exception::GENERAL_PROTECTION.into())
        }
    }

    /// Value of operand `operand` of `size` bytes, 8 at most: a register or memory.
    pub fn operand(&mut self, instruction: &Instruction, operand: u32, size: usize) -> Result<u64, Trap> {
        match instruction.op_kind(operand) {
            OpKind::Register => Ok(self.register(instruction.op_register(operand))),
            OpKind::Memory => {
                let mut bytes = [0; 8];
                let address = self.address(instruction, operand)?;
                self.read(address, &mut bytes[..size.min(8)], Access::Read)?;
                Ok(u64::from_le_bytes(bytes))
            }
            _ => Err(Trap::Unsupported),
        }
    }

    /// Reads guest-virtual memory. `access` is `Write` where the instruction writes it afterwards.
    pub fn read(&mut self, linear: u64, data: &mut [u8], access: Access) -> Result<(), Trap> {
        for (range, gpa) in self.pages(linear, data.len(), access)? {
            self.memory.read_slice(&mut data[range], GuestAddress(gpa)).map_err(|_| Trap::Unsupported)?;
        }
        Ok(())
    }

    /// Writes guest-virtual memory: all of it, or, on a fault, nothing.
    pub fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Trap> {
        for (range, gpa) in self.pages(linear, data.len(), Access::Write)? {
            self.memory.write_slice(&data[range], GuestAddress(gpa)).map_err(|_| Trap::Unsupported)?;
        }
        Ok(())
    }

    /// Host address of `len` bytes at `linear` within one page, for an atomic access.
    pub fn host_pointer(&mut self, linear: u64, len: usize) -> Result<*mut u8, Trap> {
        let gpa = self.paging().translate(self.memory, linear, Access::Write)?;
        let slice = self.memory.get_slice(GuestAddress(gpa), len).map_err(|_| Trap::Unsupported)?;
        vm_memory::bitmap::Bitmap::mark_dirty(slice.bitmap(), 0, len);
        Ok(slice.ptr_guard_mut().as_ptr())
    }

    /// Splits a range at page borders and translates each part.
    fn pages(
        &self,
        linear: u64,
        len: usize,
        access: Access,
    ) -> Result<Vec<(std::ops::Range<usize>, u64)>, Trap> {
        let paging = self.paging();
        let mut parts = Vec::with_capacity(2);
        let mut done = 0;
        while done < len {
            let address = linear.wrapping_add(done as u64);
            let room = (PAGE_SIZE - address % PAGE_SIZE) as usize;
            let end = len.min(done + room);
            parts.push((done..end, paging.translate(self.memory, address, access)?));
            done = end;
        }
        Ok(parts)
    }

    fn paging(&self) -> Paging {
        Paging::new(&self.sregs, self.regs.rflags)
    }

    fn address_part(&self, register: Register) -> u64 {
        if register.is_gpr() {
            return self.register(register);
        }
        match register {
            Register::FS => self.sregs.fs.base,
            Register::GS => self.sregs.gs.base,
            // In 64-bit mode the bases of the others count as zero.
            Register::CS if self.bitness() != 64 => self.sregs.cs.base,
            Register::DS if self.bitness() != 64 => self.sregs.ds.base,
            Register::ES if self.bitness() != 64 => self.sregs.es.base,
            Register::SS if self.bitness() != 64 => self.sregs.ss.base,
            _ => 0,
        }
    }

    fn full(&self, register: Register) -> u64 {
        let mut regs = self.regs;
        *slot_of(&mut regs, register)
    }

    fn slot(&mut self, register: Register) -> &mut u64 {
        slot_of(&mut self.regs, register)
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

fn slot_of(regs: &mut kvm_regs, register: Register) -> &mut u64 {
    match register.full_register() {
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RBX => &mut regs.rbx,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        // RAX, and what the decoder never gives for a general operand.
        _ => &mut regs.rax,
    }
}
