//! Interrupt routes: the user-space IOAPIC's pins as MSIs in KVM's routing table.

use std::sync::{Arc, Mutex, OnceLock};

use arch::layout::{IOAPIC_PINS, VIRTIO_MMIO_FIRST_GSI};
use devices::ioapic::{Msi, MsiRouter};
use devices::virtio::transport::MmioTransport;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

/// Why interrupts could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct IrqError {
    /// What was attempted.
    pub operation: &'static str,
    /// Why.
    pub source: errno::Error,
}

/// Makes local APICs in KVM and leaves the IOAPIC to user space. Before the first vCPU.
pub fn create_split_irqchip(vm: &VmFd) -> Result<(), IrqError> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&cap).map_err(|source| IrqError { operation: "create the split irqchip", source })
}

/// Keeps KVM's routing table equal to the IOAPIC's redirection entries.
pub struct Router {
    vm: Arc<VmFd>,
    routes: Mutex<[Option<Msi>; IOAPIC_PINS as usize]>,
    /// Virtio devices by slot, for level-triggered pins. Set once they are built.
    transports: OnceLock<Vec<Arc<MmioTransport>>>,
}

impl Router {
    /// A router without routes.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Router { vm, routes: Mutex::default(), transports: OnceLock::new() }
    }

    /// Tells the router which device is behind each virtio-mmio slot. Called once.
    pub fn set_transports(&self, transports: Vec<Arc<MmioTransport>>) {
        let set = self.transports.set(transports);
        debug_assert!(set.is_ok(), "transports are set once");
    }
}

impl MsiRouter for Router {
    fn update(&self, gsi: u32, route: Option<Msi>) {
        let mut routes = self.routes.lock().expect("invariant: nobody panics while holding the lock");
        let Some(slot) = routes.get_mut(gsi as usize) else { return };
        *slot = route;
        // A guest that routes an interrupt to an impossible destination loses that interrupt, nothing else.
        let _ = set_routes(&self.vm, routes.as_slice());
    }

    fn update_all(&self, new: [Option<Msi>; IOAPIC_PINS as usize]) {
        let mut routes = self.routes.lock().expect("invariant: nobody panics while holding the lock");
        *routes = new;
        // As above.
        let _ = set_routes(&self.vm, routes.as_slice());
    }

    fn resample(&self, gsi: u32) {
        let slot = gsi.checked_sub(VIRTIO_MMIO_FIRST_GSI).map(|slot| slot as usize);
        if let (Some(slot), Some(transports)) = (slot, self.transports.get())
            && let Some(transport) = transports.get(slot)
        {
            transport.reassert_interrupt();
        }
    }
}

fn set_routes(vm: &VmFd, routes: &[Option<Msi>]) -> Result<(), errno::Error> {
    let entries: Vec<_> =
        routes.iter().enumerate().filter_map(|(gsi, msi)| msi.map(|msi| entry(gsi as u32, msi))).collect();
    let table = KvmIrqRouting::from_entries(&entries).map_err(|_| errno::Error::new(libc::E2BIG))?;
    vm.set_gsi_routing(&table)
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}
