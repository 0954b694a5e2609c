//! Tells a guest that was away what changed, after everything else and before its first vCPU enters.
//!
//! ```text
//! load_state ─► … ─► start: clock, area in guest memory, interrupt to every vCPU ─► threads ─► KVM_RUN
//! pause ─► a while ─► resume: the same
//! ```
//!
//! The guest's clocks go on where they stood at the save, however long ago that was. On hardware KVM sets the
//! TSC itself; where guest ring 3 runs natively it reads the host's, and the guest learns by how much it
//! jumped. Which of the two is measured, not assumed.

use std::time::Duration;

use devices::GuestRam;
use devices::generation::{Generation, ID_SIZE, Renewal};
use kvm_bindings::{kvm_clock_data, kvm_msi};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

use crate::clock;
use crate::vcpu::{StateError, VcpuThreadError};

/// Bits 12 to 19 of an MSI's address name the local APIC.
const MSI_ADDRESS: u32 = arch::layout::LAPIC_BASE as u32;
const MSI_DESTINATION_SHIFT: u32 = 12;

/// Why a restored guest could not be told.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The host gave no random bytes.
    #[error("cannot draw random bytes for the restored guest")]
    Random(#[source] getrandom::Error),
    /// The TSC could not be read.
    #[error("cannot read the restored guest's TSC")]
    Tsc(#[source] StateError),
    /// A vCPU thread did not give the TSC.
    #[error(transparent)]
    Thread(#[from] VcpuThreadError),
    /// KVM's clock could not be set.
    #[error("cannot set the VM's clock")]
    Clock(#[source] errno::Error),
    /// A vCPU could not be interrupted.
    #[error("cannot interrupt vCPU {id}")]
    Interrupt {
        /// Number of the vCPU.
        id: u32,
        /// Why.
        source: errno::Error,
    },
}

/// Where a guest's clocks stood when it was saved.
pub struct Stood {
    /// The TSC of its first vCPU.
    pub tsc: u64,
    /// CLOCK_REALTIME of the host, in nanoseconds.
    pub real_ns: u64,
    /// KVM's clock.
    pub clock: kvm_clock_data,
}

impl Stood {
    /// Where the clocks of a VM stood that was paused `paused` ago, its TSC being `tsc` now with `tsc_khz`. KVM's
    /// clock and the TSC ran on.
    pub fn at_pause(vm: &VmFd, tsc: u64, tsc_khz: u32, paused: Duration) -> Result<Self, RenewError> {
        let mut clock = vm.get_clock().map_err(RenewError::Clock)?;
        let paused_ns = paused.as_nanos() as u64;
        clock.clock = clock.clock.saturating_sub(paused_ns);
        clock.flags = 0;
        let cycles = u128::from(paused_ns) * u128::from(tsc_khz) / 1_000_000;
        let real_ns = clock::realtime_ns().saturating_sub(paused_ns);
        Ok(Stood { tsc: tsc.wrapping_sub(cycles as u64), real_ns, clock })
    }
}

/// Gives a guest that was away a new identity and the time, `step_ms` ahead of the host's. `tsc` reads its first
/// vCPU's TSC. Without a driver for it nothing happens.
pub fn renew(
    vm: &VmFd,
    memory: &GuestRam,
    generation: &Generation,
    vcpus: u32,
    stood: &Stood,
    step_ms: i64,
    tsc: impl FnOnce() -> Result<u64, RenewError>,
) -> Result<(), RenewError> {
    if generation.vector().is_none() {
        return Ok(());
    }
    let mut id = [0; ID_SIZE];
    getrandom::fill(&mut id).map_err(RenewError::Random)?;
    // KVM's clock was set at the restore, which may be long ago; the TSC is read right after it, since the
    // guest compares the two.
    vm.set_clock(&stood.clock).map_err(RenewError::Clock)?;
    let tsc = tsc()?;
    let real_ns = clock::realtime_ns().saturating_add_signed(step_ms.saturating_mul(1_000_000));
    let paused_ns = real_ns.saturating_sub(stood.real_ns);
    let renewal = Renewal { id, saved_tsc: stood.tsc, tsc, real_ns, paused_ns };
    let Some(vector) = generation.renew(memory, &renewal) else { return Ok(()) };
    for id in 0..vcpus {
        interrupt(vm, id, vector).map_err(|source| RenewError::Interrupt { id, source })?;
    }
    Ok(())
}

/// Sends `vector` to a vCPU; one that is off does not take it.
fn interrupt(vm: &VmFd, vcpu: u32, vector: u8) -> Result<(), errno::Error> {
    let address_lo = MSI_ADDRESS | (vcpu << MSI_DESTINATION_SHIFT);
    vm.signal_msi(kvm_msi { address_lo, data: u32::from(vector), ..Default::default() }).map(|_| ())
}
