//! Saved state of a vCPU, in the order in which KVM wants it back.

use arch::msrs;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

/// A vCPU's state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct StateError {
    /// The KVM call.
    pub operation: &'static str,
    /// Why.
    pub source: errno::Error,
}

/// Everything that a vCPU is.
#[derive(Deserialize, Serialize)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    tsc_khz: Option<u32>,
}

impl VcpuState {
    /// The time stamp counter when the vCPU was saved.
    pub fn tsc(&self) -> u64 {
        self.msr(msrs::TSC)
    }

    /// The saved value of an MSR, 0 if it is not there.
    fn msr(&self, index: u32) -> u64 {
        self.msrs.iter().find(|entry| entry.index == index).map_or(0, |entry| entry.data)
    }
}

fn failed(operation: &'static str) -> impl Fn(errno::Error) -> StateError {
    move |source| StateError { operation, source }
}

/// Reads the state of a vCPU that is outside KVM_RUN with no exit half done.
pub fn save(fd: &VcpuFd) -> Result<VcpuState, StateError> {
    // First: KVM_GET_MP_STATE lets KVM process pending INIT and SIPI, which changes the rest.
    let mp_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    Ok(VcpuState {
        mp_state,
        regs: fd.get_regs().map_err(failed("KVM_GET_REGS"))?,
        sregs: fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
        xsave: fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?,
        xcrs: fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
        debug_regs: fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
        lapic: fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
        tsc_khz: fd.get_tsc_khz().ok(),
        msrs: save_msrs(fd)?,
        // Last: the calls above may deliver what was pending.
        events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
    })
}

/// Loads `state` into a fresh vCPU whose CPUID is set.
pub fn restore(fd: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    if let Some(khz) = state.tsc_khz
        && fd.get_tsc_khz().is_ok_and(|host| host != khz)
    {
        fd.set_tsc_khz(khz).map_err(failed("KVM_SET_TSC_KHZ"))?;
    }
    fd.set_mp_state(state.mp_state).map_err(failed("KVM_SET_MP_STATE"))?;
    fd.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?;
    fd.set_sregs(&state.sregs).map_err(failed("KVM_SET_SREGS"))?;
    // SAFETY: KVM reads more than `kvm_xsave` only for features that a process must ask for through
    // arch_prctl (AMX), which nothing here does.
    unsafe { fd.set_xsave(&state.xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
    fd.set_xcrs(&state.xcrs).map_err(failed("KVM_SET_XCRS"))?;
    fd.set_debug_regs(&state.debug_regs).map_err(failed("KVM_SET_DEBUGREGS"))?;
    // The LAPIC before the MSRs: the TSC deadline is one of them and needs the timer's mode.
    fd.set_lapic(&state.lapic).map_err(failed("KVM_SET_LAPIC"))?;
    restore_msrs(fd, &state.msrs)?;
    move_deadline(fd, state)?;
    fd.set_vcpu_events(&state.events).map_err(failed("KVM_SET_VCPU_EVENTS"))
}

/// Reads the MSRs of [`msrs::SAVED`] that this KVM has.
fn save_msrs(fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut saved = Vec::with_capacity(msrs::SAVED.len());
    let mut wanted: &[u32] = &msrs::SAVED;
    while !wanted.is_empty() {
        let list: Vec<_> =
            wanted.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = entries(&list)?;
        let read = fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first one that it lacks.
        wanted = wanted.get(read + 1..).unwrap_or_default();
    }
    Ok(saved)
}

fn restore_msrs(fd: &VcpuFd, mut wanted: &[kvm_msr_entry]) -> Result<(), StateError> {
    while !wanted.is_empty() {
        let msrs = entries(wanted)?;
        let written = fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        match wanted.get(written) {
            None => break,
            // Readable but not writable with the value it has: zero is what a fresh vCPU has too.
            Some(refused) if refused.data == 0 => wanted = &wanted[written + 1..],
            Some(_) => return Err(failed("KVM_SET_MSRS")(errno::Error::new(libc::EINVAL))),
        }
    }
    Ok(())
}

/// Reads the time stamp counter.
pub fn tsc(fd: &VcpuFd) -> Result<u64, StateError> {
    let mut msrs = entries(&[kvm_msr_entry { index: msrs::TSC, ..Default::default() }])?;
    fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice().first().map_or(0, |entry| entry.data))
}

/// Moves the timer's deadline along with the counter, which cannot be set where ring 3 reads the host's own:
/// what was left of the timer is left of it still.
fn move_deadline(fd: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    let deadline = state.msr(msrs::TSC_DEADLINE);
    if deadline == 0 {
        return Ok(());
    }
    let jump = tsc(fd)?.wrapping_sub(state.tsc());
    let data = deadline.wrapping_add(jump);
    restore_msrs(fd, &[kvm_msr_entry { index: msrs::TSC_DEADLINE, data, ..Default::default() }])
}

fn entries(list: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(list).map_err(|_| failed("holding the MSRs")(errno::Error::new(libc::E2BIG)))
}
