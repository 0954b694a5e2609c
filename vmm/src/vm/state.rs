//! Saving a paused VM and loading it into a new one.

use devices::generation::GenerationState;
use devices::ioapic::IoapicState;
use devices::serial::SerialState;
use devices::virtio::device::RestoreError;
use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, kvm_clock_data};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::generation::Stood;
use super::{BuildError, Vcpus, Vm, WrongState};
use crate::clock;
use crate::snapshot::ReadError;
use crate::vcpu::{StateError, VcpuState, VcpuThreadError};

/// Everything of a VM but its memory and its configuration.
#[derive(Deserialize, Serialize)]
pub struct VmState {
    vcpus: Vec<VcpuState>,
    clock: kvm_clock_data,
    /// CLOCK_REALTIME of the host, in nanoseconds, when the vCPUs were saved.
    saved_at_ns: u64,
    generation: GenerationState,
    ioapic: IoapicState,
    console: Option<SerialState>,
    /// Each virtio transport with its device, by slot.
    transports: Vec<Vec<u8>>,
}

impl VmState {
    /// State of the serial port, which is built from it.
    pub(super) fn console(&self) -> Option<&SerialState> {
        self.console.as_ref()
    }

    /// Where the guest's clocks stand.
    pub(super) fn stood(&self) -> Stood {
        let tsc = self.vcpus.first().map_or(0, VcpuState::tsc);
        Stood { tsc, real_ns: self.saved_at_ns, clock: self.clock }
    }
}

/// Why a VM could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It is not paused.
    #[error(transparent)]
    State(#[from] WrongState),
    /// A vCPU could not be saved.
    #[error(transparent)]
    Vcpu(#[from] VcpuThreadError),
    /// KVM's clock could not be read.
    #[error("cannot read the VM's clock")]
    Clock(#[source] errno::Error),
    /// A device could not be saved.
    #[error("cannot save the device {device}: {what}")]
    Device {
        /// Its name in the guest.
        device: String,
        /// Why.
        what: String,
    },
}

/// Why a saved state could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RestoreVmError {
    /// The VM itself could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The snapshot cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The snapshot is of another machine.
    #[error(transparent)]
    Fingerprint(#[from] crate::snapshot::Mismatch),
    /// State and configuration do not belong together.
    #[error("the saved state has {saved} {what}, the configuration {configured}")]
    Mismatch {
        /// What is counted.
        what: &'static str,
        /// Number in the state.
        saved: usize,
        /// Number in the configuration.
        configured: usize,
    },
    /// A vCPU refused its state.
    #[error("cannot restore vCPU {id}")]
    Vcpu {
        /// Number of the vCPU.
        id: usize,
        /// Why.
        source: StateError,
    },
    /// KVM's clock could not be set.
    #[error("cannot set the VM's clock")]
    Clock(#[source] errno::Error),
    /// A device refused its state.
    #[error(transparent)]
    Device(#[from] RestoreError),
}

impl Vm {
    /// The state of a paused VM. Its memory is the caller's to keep.
    pub fn save_state(&mut self) -> Result<VmState, SaveError> {
        let Vcpus::Paused(handles) = &self.vcpus else {
            return Err(self.vcpus.refuse("save").into());
        };
        let vcpus = handles.iter().map(|handle| handle.save()).collect::<Result<Vec<_>, _>>()?;
        let saved_at_ns = clock::realtime_ns();
        let mut clock = self.vm.get_clock().map_err(SaveError::Clock)?;
        // The guest's clock stands still while it is saved: the host's time at saving says nothing later.
        clock.flags &= !(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC);
        let transports = self
            .machine
            .slots
            .iter()
            .map(|slot| {
                let device = slot.transport.name().to_owned();
                slot.transport.save().map_err(|error| SaveError::Device { device, what: error.to_string() })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let ioapic = self.machine.buses.ioapic.state();
        let console = self.machine.console.as_ref().map(|console| console.state());
        let generation = self.machine.generation.state();
        Ok(VmState { vcpus, clock, saved_at_ns, generation, ioapic, console, transports })
    }

    /// Loads `state` into a VM just built.
    pub(super) fn load_state(&self, state: &VmState) -> Result<(), RestoreVmError> {
        let Vcpus::Ready(vcpus) = &self.vcpus else { return Ok(()) };
        let check = |what, saved, configured| {
            if saved == configured {
                Ok(())
            } else {
                Err(RestoreVmError::Mismatch { what, saved, configured })
            }
        };
        check("vCPUs", state.vcpus.len(), vcpus.len())?;
        check("virtio devices", state.transports.len(), self.machine.slots.len())?;
        self.vm.set_clock(&state.clock).map_err(RestoreVmError::Clock)?;
        for (id, (vcpu, saved)) in vcpus.iter().zip(&state.vcpus).enumerate() {
            vcpu.restore(saved).map_err(|source| RestoreVmError::Vcpu { id, source })?;
        }
        self.machine.generation.restore(state.generation);
        // Routes before devices: a pending interrupt is raised while its device is restored.
        self.machine.buses.ioapic.restore(&state.ioapic);
        for (slot, saved) in self.machine.slots.iter().zip(&state.transports) {
            slot.transport.restore(saved)?;
        }
        Ok(())
    }
}
