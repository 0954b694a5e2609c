//! What the emulator cannot complete: instructions that KVM gives up on where it emulates guest ring 0.
//!
//! Some hosts' KVM has neither VT-x nor AMD-V under it and interprets the guest kernel in software. Its
//! interpreter knows most instructions; for the others KVM_RUN ends with KVM_EXIT_INTERNAL_ERROR, suberror
//! KVM_INTERNAL_ERROR_EMULATION, RIP still on the instruction and no exception pending. Here the VMM does
//! what the instruction does and lets the guest go on:
//!
//! ```text
//! exit -> fetch bytes -> decode (iced-x86) -> execute -> registers back, or exception -> KVM_RUN
//! ```
//!
//! On hardware none of this runs: such exits do not occur for these instructions. The guest is hostile:
//! whatever it executes, the worst that happens is that its own VM ends with a
//! [`GuestFault`](crate::config::VmExit::GuestFault).

mod context;
mod decode;
pub mod detect;
mod exception;
mod execute;
mod fpu;
mod integer;
mod paging;
mod segments;
mod system;
mod xsave;
mod xstate;

use devices::GuestRam;
use iced_x86::Instruction;
use kvm_ioctls::VcpuFd;

use self::context::Context;
use self::exception::Trap;

/// What became of an instruction that KVM could not emulate.
#[derive(Debug, PartialEq, Eq)]
pub enum Completion {
    /// It is done, or raised its exception in the guest: enter the guest again.
    Done,
    /// Nobody can complete it; says which instruction.
    Impossible(String),
}

/// Completes instructions for one vCPU.
pub struct Completer {
    memory: GuestRam,
}

impl Completer {
    /// A completer for a vCPU of the VM with `memory`.
    pub fn new(memory: GuestRam) -> Self {
        Completer { memory }
    }

    /// Handles a KVM_EXIT_INTERNAL_ERROR of `vcpu`.
    pub fn complete(&mut self, vcpu: &mut VcpuFd) -> Completion {
        let fetched = match decode::reported_bytes(vcpu) {
            Ok(bytes) => bytes,
            Err(suberror) => return Completion::Impossible(format!("KVM internal error {suberror}")),
        };
        match self.step(vcpu, fetched) {
            Ok(()) => Completion::Done,
            Err(what) => Completion::Impossible(what),
        }
    }

    fn step(&self, vcpu: &VcpuFd, fetched: decode::Fetched) -> Result<(), String> {
        let mut context = Context::load(vcpu, &self.memory).map_err(|e| e.to_string())?;
        let (instruction, bytes) = decode::decode(&mut context, fetched);
        let Some(instruction) = instruction else {
            return Err(format!("KVM cannot emulate the instruction with the bytes {bytes}"));
        };
        match execute::execute(&mut context, &instruction) {
            Ok(()) => context.finish(&instruction).map_err(|e| e.to_string()),
            Err(Trap::Exception(exception)) => context.raise(exception).map_err(|e| e.to_string()),
            Err(Trap::Unsupported) => Err(unsupported(&instruction, &bytes)),
            Err(Trap::Host(error)) => Err(error.to_string()),
        }
    }
}

fn unsupported(instruction: &Instruction, bytes: &str) -> String {
    format!("KVM cannot emulate the instruction {:?} with the bytes {bytes}", instruction.mnemonic())
}
