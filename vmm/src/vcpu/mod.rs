//! One virtual processor: its registers at boot, and the loop that runs it until somebody wants it back.
//!
//! ```text
//! exit: KVM_RUN -> vcpu::run -> exit::dispatch -> Bus::write(offset) -> MmioTransport::write
//! ```

mod kick;
mod state;
mod thread;

use std::sync::Arc;

use arch::{boot_state, cpuid, msrs};
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

pub use self::kick::install as install_kick_handler;
pub use self::state::{StateError, VcpuState};
pub use self::thread::{VcpuHandle, VcpuThreadError};
use crate::config::VmExit;
use crate::emulation::{Completer, Completion};
use crate::exit::{self, Buses, Next};

/// Why a vCPU could not be made ready.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} of vCPU {id}")]
pub struct VcpuError {
    /// Number of the vCPU.
    pub id: u8,
    /// What was attempted.
    pub operation: &'static str,
    /// Why it failed.
    pub source: errno::Error,
}

/// Why [`Vcpu::run`] returned.
#[derive(Debug)]
pub enum Outcome {
    /// Somebody kicked the vCPU; its state is consistent and can be saved.
    Kicked,
    /// The guest has ended, or cannot go on.
    Ended(VmExit),
}

/// A vCPU that is not running.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    buses: Arc<Buses>,
    completer: Completer,
}

impl Vcpu {
    /// Creates vCPU `id` in `vm` and tells it its CPUID; all its other state is KVM's reset state.
    pub fn create(
        vm: &VmFd,
        id: u8,
        cpuid: &[kvm_cpuid_entry2],
        buses: Arc<Buses>,
        completer: Completer,
    ) -> Result<Self, VcpuError> {
        let error = |operation| move |source| VcpuError { id, operation, source };
        let fd = vm.create_vcpu(u64::from(id)).map_err(error("create the descriptor"))?;
        let mut entries = cpuid.to_vec();
        cpuid::set_apic_id(&mut entries, id);
        let entries = CpuId::from_entries(&entries).map_err(|_| VcpuError {
            id,
            operation: "hold the CPUID entries",
            source: errno::Error::new(libc::E2BIG),
        })?;
        fd.set_cpuid2(&entries).map_err(error("set the CPUID"))?;
        Ok(Vcpu { id, fd, buses, completer })
    }

    /// Puts the vCPU at a kernel's 64-bit entry point. For the boot vCPU; the others wait for its SIPI.
    pub fn set_boot_state(&self, entry: u64) -> Result<(), VcpuError> {
        let error = |operation| move |source| VcpuError { id: self.id, operation, source };
        let mut sregs = self.fd.get_sregs().map_err(error("read the segment registers"))?;
        boot_state::set_long_mode(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(error("set the segment registers"))?;
        self.fd.set_regs(&boot_state::regs(entry)).map_err(error("set the registers"))
    }

    /// Sets the MSRs that differ from KVM's reset values.
    pub fn set_boot_msrs(&self) -> Result<(), VcpuError> {
        let error = |operation| move |source| VcpuError { id: self.id, operation, source };
        let msrs = Msrs::from_entries(&msrs::boot_entries()).map_err(|_| VcpuError {
            id: self.id,
            operation: "hold the MSR entries",
            source: errno::Error::new(libc::E2BIG),
        })?;
        // An MSR that this KVM refuses is one that its guests do not need.
        self.fd.set_msrs(&msrs).map_err(error("set the MSRs")).map(|_| ())
    }

    /// The descriptor, for what a template changes.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The descriptor, for probing before the vCPU runs.
    pub(crate) fn fd_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Runs the guest until a kick or its end.
    pub fn run(&mut self) -> Outcome {
        loop {
            let next = match self.fd.run() {
                Ok(exit) => exit::dispatch(exit, &self.buses),
                Err(error) => match error.errno() {
                    libc::EINTR => {
                        self.fd.set_kvm_immediate_exit(0);
                        return Outcome::Kicked;
                    }
                    libc::EAGAIN => Next::Continue,
                    _ => Next::Fault(format!("KVM_RUN failed: {error}")),
                },
            };
            match next {
                Next::Continue => (),
                Next::InternalError => {
                    if let Err(what) = self.complete() {
                        return Outcome::Ended(self.fault(&what));
                    }
                }
                Next::Fault(what) => return Outcome::Ended(self.fault(&what)),
            }
        }
    }

    /// Lets the guest know that it stood still, so that its watchdogs do not take it for hung.
    fn tell_of_pause(&self) {
        // Fails for a guest that does not use KVM's clock, which then cannot be told.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Completes the instruction that KVM's emulator gave up on, or says why it cannot be.
    fn complete(&mut self) -> Result<(), String> {
        match self.completer.complete(&mut self.fd) {
            Completion::Done => Ok(()),
            Completion::Impossible(what) => Err(what),
        }
    }

    fn fault(&self, what: &str) -> VmExit {
        let place = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "rip {:#x}, rsp {:#x}, cr2 {:#x}, cr3 {:#x}",
                regs.rip, regs.rsp, sregs.cr2, sregs.cr3
            ),
            _ => "registers unreadable".into(),
        };
        VmExit::GuestFault { what: format!("{what} (vCPU {}, {place})", self.id) }
    }

    /// The guest's time stamp counter now. The vCPU is not running.
    pub fn tsc(&self) -> Result<u64, StateError> {
        state::tsc(&self.fd)
    }

    /// The rate of that counter in kHz.
    pub fn tsc_khz(&self) -> Result<u32, StateError> {
        self.fd.get_tsc_khz().map_err(|source| StateError { operation: "KVM_GET_TSC_KHZ", source })
    }

    /// Everything that must survive a snapshot. The vCPU has not run yet, or was kicked.
    pub fn save(&self) -> Result<VcpuState, StateError> {
        state::save(&self.fd)
    }

    /// Loads a saved state before the vCPU runs.
    pub fn restore(&self, state: &VcpuState) -> Result<(), StateError> {
        state::restore(&self.fd, state)
    }
}
