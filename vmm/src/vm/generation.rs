//! Tells a restored guest what changed, after everything else and before its first vCPU enters.
//!
//! ```text
//! load_state ─► … ─► start: clock, area in guest memory, interrupt to every vCPU ─► threads ─► KVM_RUN
//! ```
//!
//! The guest's clocks go on where they stood at the save, however long ago that was. On hardware KVM sets the
//! TSC itself; where guest ring 3 runs natively it reads the host's, and the guest learns by how much it
//! jumped. Which of the two is measured, not assumed.

use devices::GuestRam;
use devices::generation::{Generation, ID_SIZE, Renewal};
use kvm_bindings::{kvm_clock_data, kvm_msi};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

use crate::clock;
use crate::vcpu::{StateError, Vcpu};

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

/// Gives a restored guest a new identity and the time. Without a driver for it nothing happens.
pub fn renew(
    vm: &VmFd,
    memory: &GuestRam,
    generation: &Generation,
    vcpus: &[Vcpu],
    stood: &Stood,
) -> Result<(), RenewError> {
    let (Some(first), Some(_)) = (vcpus.first(), generation.vector()) else { return Ok(()) };
    let mut id = [0; ID_SIZE];
    getrandom::fill(&mut id).map_err(RenewError::Random)?;
    // KVM's clock was set at the restore, which may be long ago; the TSC is read right after it, since the
    // guest compares the two.
    vm.set_clock(&stood.clock).map_err(RenewError::Clock)?;
    let tsc = first.tsc().map_err(RenewError::Tsc)?;
    let real_ns = clock::realtime_ns();
    let paused_ns = real_ns.saturating_sub(stood.real_ns);
    let renewal = Renewal { id, saved_tsc: stood.tsc, tsc, real_ns, paused_ns };
    let Some(vector) = generation.renew(memory, &renewal) else { return Ok(()) };
    for id in 0..vcpus.len() as u32 {
        interrupt(vm, id, vector).map_err(|source| RenewError::Interrupt { id, source })?;
    }
    Ok(())
}

/// Sends `vector` to a vCPU; one that is off does not take it.
fn interrupt(vm: &VmFd, vcpu: u32, vector: u8) -> Result<(), errno::Error> {
    let address_lo = MSI_ADDRESS | (vcpu << MSI_DESTINATION_SHIFT);
    vm.signal_msi(kvm_msi { address_lo, data: u32::from(vector), ..Default::default() }).map(|_| ())
}
