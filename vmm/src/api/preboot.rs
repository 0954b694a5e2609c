//! Calls before there is a VM.

use api_server::http::Response;
use api_server::wire::VmState;
use api_server::{Call, Fault};

use super::fault::refused;
use super::instance::{Guest, GuestState, Instance};
use crate::clock;
use crate::vm::Vm;

impl Instance {
    /// Does what `call` wants; a VM that it makes is left in `guest`.
    pub fn call_before_start(&mut self, call: Call, guest: &mut Option<Guest>) -> Result<Response, Fault> {
        let resources = &mut self.resources;
        match call {
            Call::SetMachine(update) => resources.set_machine(&update)?,
            Call::SetCpu(template) => resources.set_cpu(&template)?,
            Call::SetBootSource(boot) => resources.set_boot_source(boot)?,
            Call::SetDrive(drive) => resources.set_drive(drive)?,
            Call::SetNet(net) => resources.set_net(net)?,
            Call::SetPmem(pmem) => resources.set_pmem(pmem)?,
            Call::SetVsock(vsock) => resources.set_vsock(vsock)?,
            Call::SetEntropy(entropy) => resources.set_entropy(entropy)?,
            Call::SetSerial(serial) => resources.set_serial(serial)?,
            Call::SetBalloon(balloon) => resources.set_balloon(balloon)?,
            Call::SetMemoryHotplug(hotplug) => resources.set_memory_hotplug(&hotplug)?,
            Call::SetMmdsConfig(config) => resources.set_mmds(config)?,
            Call::GetBalloon => {
                let balloon = resources.balloon();
                let missing = || Fault::new("Balloon config error: No balloon device found.");
                return balloon.map(Response::data).ok_or_else(missing);
            }
            Call::SetLogger(logger) => self.log.update(&logger)?,
            Call::SetMetrics(metrics) => self.metrics.configure(metrics)?,
            Call::Start => *guest = Some(self.boot()?),
            Call::LoadSnapshot(load) => *guest = Some(self.load(&load)?),
            other => return self.call_anytime(other, VmState::NotStarted),
        }
        Ok(Response::done())
    }

    /// Builds the VM that was configured and enters its guest.
    pub fn boot(&mut self) -> Result<Guest, Fault> {
        let what = "Start microvm error";
        let asked_at_ns = clock::monotonic_ns();
        if self.resources.config().boot_source.kernel_image_path.is_empty() {
            return Err(Fault::new(format!("{what}: Cannot start microvm without kernel configuration.")));
        }
        let config = self.resources.vm_config(&self.metadata)?;
        let mut vm = Vm::build(&config).map_err(|error| refused(what, &error))?;
        if let (Some(balloon), Some(control)) = (self.resources.balloon(), vm.balloon()) {
            control.set_target(balloon.amount_mib).map_err(|error| refused(what, &error))?;
        }
        self.limit_calls(&mut vm);
        vm.start().map_err(|error| refused(what, &error))?;
        Ok(Guest { vm, state: GuestState::Running, asked_at_ns, handler: None })
    }
}
