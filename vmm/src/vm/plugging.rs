//! Network interfaces put into spare slots, and devices taken out of theirs, while the VM runs.

use std::os::fd::{AsRawFd as _, OwnedFd};

use arch::layout;
use devices::virtio::transport::{MmioTransport, QUEUE_NOTIFY_OFFSET};
use kvm_ioctls::IoEventAddress;
use vmm_sys_util::errno;

use super::Vm;
use super::machine::{DeviceError, net};
use crate::config::{NetBackend, NetConfig};
use crate::control::{Done, PlugNet, Refusal, RefusalKind};

impl Vm {
    /// Puts an interface on the TAP `tap` into the first empty slot. The guest finds it by probing that slot.
    pub(super) fn plug_net(&mut self, order: &PlugNet, tap: Option<OwnedFd>) -> Result<Done, Refusal> {
        let request = |message: String| Refusal { kind: RefusalKind::Request, message };
        let host = |message: String| Refusal { kind: RefusalKind::Host, message };
        let tap = tap.ok_or_else(|| request("the TAP's descriptor did not come with the request".into()))?;
        if self.machine.slot_of(&order.name).is_some() {
            return Err(request(format!("there is a device {:?} already", order.name)));
        }
        let slot = self.machine.slots.iter().position(|slot| slot.transport.is_empty());
        let slot = slot.ok_or_else(|| request("no virtio slot is empty".into()))?;
        let config = NetConfig {
            fd: tap.as_raw_fd(),
            backend: NetBackend::Tap,
            mac: order.mac,
            limits: order.limits,
            mtu: None,
            service: None,
        };
        let (name, device) =
            net(&order.name, &config).map_err(|error: DeviceError| host(crate::text::with_causes(&error)))?;
        let rates = device.rate_control();
        let transport = &self.machine.slots[slot].transport;
        self.notify_by_ioeventfd(slot, transport, true).map_err(|error| {
            host(format!("cannot register the notifications of {name} with KVM: {error}"))
        })?;
        transport.plug(device).map_err(|error| host(error.to_string()))?;
        self.machine.rates.extend(rates.map(|rates| (name.clone(), rates)));
        self.machine.plugged.push((name, slot));
        Ok(Done { slot: Some(slot as u8), ..Done::default() })
    }

    /// Empties the slot of the device that the guest calls `name`, of which it has let go.
    pub(super) fn unplug(&mut self, name: &str) -> Result<Done, Refusal> {
        let slot = self.machine.slot_of(name).ok_or_else(|| Refusal {
            kind: RefusalKind::Request,
            message: format!("there is no device {name:?}"),
        })?;
        let transport = &self.machine.slots[slot].transport;
        // They stay registered where KVM does not let go; the slot is then taken for good.
        let _ = self.notify_by_ioeventfd(slot, transport, false);
        drop(transport.unplug());
        self.machine.rates.remove(name);
        self.machine.plugged.retain(|(plugged, _)| plugged != name);
        Ok(Done { slot: Some(slot as u8), ..Done::default() })
    }

    /// Registers, or takes back, the eventfds that KVM signals when the driver notifies a queue.
    fn notify_by_ioeventfd(
        &self,
        slot: usize,
        transport: &MmioTransport,
        wanted: bool,
    ) -> Result<(), errno::Error> {
        let address = IoEventAddress::Mmio(layout::virtio_mmio_address(slot) + QUEUE_NOTIFY_OFFSET);
        for (queue, notifier) in (0_u32..).zip(transport.queue_notifiers()) {
            if wanted {
                self.vm.register_ioevent(notifier, &address, queue)?;
            } else {
                self.vm.unregister_ioevent(notifier, &address, queue)?;
            }
        }
        Ok(())
    }
}
