//! Turns an exit of KVM_RUN into a bus access, or into a reason to stop.
//!
//! Knows buses, no devices.

use std::sync::Arc;

use devices::bus::Bus;
use devices::ioapic::Ioapic;
use kvm_ioctls::VcpuExit;

/// Everything that a vCPU can reach from user space.
pub struct Buses {
    /// I/O ports.
    pub pio: Bus,
    /// Device memory.
    pub mmio: Bus,
    /// Hears of the end of level-triggered interrupts.
    pub ioapic: Arc<Ioapic>,
}

/// What the vCPU does after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enters the guest again.
    Continue,
    /// KVM could not go on; `kvm_run.internal` says why.
    InternalError,
    /// Stops: the guest has ended in a way it cannot go on from.
    Fault(String),
}

/// Handles `exit`. The data of a read is filled in before the vCPU runs on.
pub fn dispatch(exit: VcpuExit<'_>, buses: &Buses) -> Next {
    match exit {
        VcpuExit::IoIn(port, data) => buses.pio.read(u64::from(port), data),
        VcpuExit::IoOut(port, data) => buses.pio.write(u64::from(port), data),
        VcpuExit::MmioRead(address, data) => buses.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.mmio.write(address, data),
        VcpuExit::IoapicEoi(vector) => buses.ioapic.end_of_interrupt(vector),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => (),
        VcpuExit::InternalError => return Next::InternalError,
        VcpuExit::Shutdown => return Next::Fault("triple fault".into()),
        VcpuExit::Hlt => return Next::Fault("halted outside the in-kernel APIC".into()),
        VcpuExit::FailEntry(reason, cpu) => {
            return Next::Fault(format!(
                "the processor refused to enter the guest: reason {reason:#x} on host CPU {cpu}"
            ));
        }
        other => return Next::Fault(format!("unexpected KVM exit {other:?}")),
    }
    Next::Continue
}
