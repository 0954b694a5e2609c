//! Calls while there is a VM.

use std::path::Path;
use std::time::Instant;

use api_server::http::Response;
use api_server::wire::{BalloonStats, DriveUpdate, VmState};
use api_server::{Call, Fault};
use devices::virtio::balloon::Statistics;
use serde_json::json;

use super::fault::{not_offered, refused};
use super::instance::{Guest, GuestState, Instance};
use crate::config::disk_name;
use crate::vm::VmError;

impl Instance {
    /// Does what `call` wants with the VM.
    pub fn call_started(&mut self, call: Call, guest: &mut Guest) -> Result<Response, Fault> {
        let begin = Instant::now();
        match call {
            Call::Pause => {
                guest.pause().map_err(|error| refused("Internal VMM error", &error))?;
                self.metrics.took("pause_vm", begin.elapsed());
            }
            Call::Resume => {
                guest.resume().map_err(|error| refused("Internal VMM error", &error))?;
                self.metrics.took("resume_vm", begin.elapsed());
            }
            Call::CreateSnapshot(create) => self.save(&create, guest)?,
            Call::FlushMetrics => self
                .metrics
                .flush(json!({}))
                .map_err(|error| refused("Internal VMM error: Metrics error", &error))?,
            Call::GetBalloon => {
                let balloon = self.resources.balloon();
                return balloon.map(Response::data).ok_or_else(|| no_balloon("Internal VMM error"));
            }
            Call::UpdateBalloon(update) => {
                let what = "Balloon update error";
                let control = guest.vm.balloon().ok_or_else(|| no_balloon(what))?;
                control.set_target(update.amount_mib).map_err(|error| refused(what, &error))?;
                self.resources.set_balloon_amount(update.amount_mib);
            }
            Call::GetBalloonStats => return self.balloon_stats(guest),
            Call::UpdateBalloonStats(update) => {
                self.update_balloon_stats(update.stats_polling_interval_s, guest)?
            }
            Call::GetHinting => return guest.hinting_status(),
            Call::StartHinting(start) => guest.start_hinting(start.acknowledge_on_stop)?,
            Call::StopHinting => guest.stop_hinting()?,
            Call::GetMemoryHotplug => return self.memory_hotplug(guest),
            Call::UpdateMemoryHotplug(update) => self.update_memory_hotplug(&update, guest)?,
            Call::SendCtrlAltDel => {
                if !guest.vm.ctrl_alt_del() {
                    return Err(Fault::new(
                        "Internal VMM error: I8042 error: the guest does not read its keyboard: has its kernel a driver?",
                    ));
                }
            }
            Call::UpdateDrive(update) => self.update_drive(&update, guest)?,
            Call::UpdateNet(update) => {
                let refused = |why: &str| {
                    Fault::new(format!("Network config error: Unable to patch the network interface: {why}"))
                };
                let (place, limits) = self
                    .resources
                    .change_net_limits(&update)
                    .ok_or_else(|| refused("there is no such interface"))?;
                guest.vm.set_limits(&format!("eth{place}"), limits).map_err(|why| refused(&why))?;
            }
            Call::UpdatePmem(update) => {
                let refused =
                    |why: &str| Fault::new(format!("Pmem config error: Unable to patch the device: {why}"));
                let change = self.resources.change_pmem_limits(&update);
                let (place, limits) = change.ok_or_else(|| refused("there is no such device"))?;
                guest.vm.set_limits(&format!("pmem{place}"), limits).map_err(|why| refused(&why))?;
            }
            Call::Unplug(..) => {
                return Err(not_offered(
                    "Unplugging a device, which Firecracker does with --enable-pci only,",
                    "let the guest leave it alone",
                ));
            }
            other => return self.call_anytime(other, guest.state.into()),
        }
        Ok(Response::done())
    }

    fn update_drive(&mut self, update: &DriveUpdate, guest: &Guest) -> Result<(), Fault> {
        let refused = |why: &str| {
            Fault::new(format!(
                "Drive config error: Unable to patch the block device: {why} Please verify the request arguments."
            ))
        };
        let place = self
            .resources
            .place_of_drive(&update.drive_id)
            .ok_or_else(|| refused("there is no such drive."))?;
        if let Some(change) = update.rate_limiter {
            let limits = self.resources.change_drive_limits(place, change);
            guest.vm.set_limits(&disk_name(place), limits).map_err(|why| refused(&format!("{why}.")))?;
        }
        let Some(path) = update.path_on_host.as_deref() else {
            let nothing = update.rate_limiter.is_none();
            return if nothing { Err(refused("there is nothing to change.")) } else { Ok(()) };
        };
        guest
            .vm
            .change_medium(&disk_name(place), Path::new(path))
            .map_err(|why| refused(&format!("{why}.")))?;
        self.resources.set_drive_path(place, path);
        Ok(())
    }

    fn update_balloon_stats(&mut self, interval_s: u16, guest: &Guest) -> Result<(), Fault> {
        let what = "Balloon update error";
        let control = guest.vm.balloon().ok_or_else(|| no_balloon(what))?;
        match control.statistics() {
            Some(statistics) if interval_s > 0 => {
                statistics.set_interval(interval_s).map_err(|error| refused(what, &error))?;
            }
            None if interval_s == 0 => {}
            _ => {
                return Err(Fault::new(format!(
                    "{what}: Statistics cannot be enabled/disabled after activation."
                )));
            }
        }
        self.resources.set_balloon_interval(interval_s);
        Ok(())
    }

    fn balloon_stats(&self, guest: &Guest) -> Result<Response, Fault> {
        let control = guest.vm.balloon().ok_or_else(|| no_balloon("Internal VMM error"))?;
        let (target_mib, actual_mib) = (control.target_mib(), control.actual_mib());
        let [
            swap_in,
            swap_out,
            major_faults,
            minor_faults,
            free_memory,
            total_memory,
            available_memory,
            disk_caches,
            hugetlb_allocations,
            hugetlb_failures,
        ] = control.statistics().map(Statistics::figures).unwrap_or_default();
        Ok(Response::data(&BalloonStats {
            target_pages: target_mib * 256,
            actual_pages: actual_mib * 256,
            target_mib,
            actual_mib,
            swap_in,
            swap_out,
            major_faults,
            minor_faults,
            free_memory,
            total_memory,
            available_memory,
            disk_caches,
            hugetlb_allocations,
            hugetlb_failures,
        }))
    }
}

impl Guest {
    /// Takes the vCPUs out of the guest; nothing is to be done where they are.
    fn pause(&mut self) -> Result<(), VmError> {
        if self.state == GuestState::Running {
            self.vm.pause()?;
            self.state = GuestState::Paused;
        }
        Ok(())
    }

    /// Lets the vCPUs into the guest; nothing is to be done where they are.
    pub fn resume(&mut self) -> Result<(), VmError> {
        match self.state {
            GuestState::Running => return Ok(()),
            GuestState::Paused => self.vm.resume()?,
            GuestState::Loaded => self.vm.start()?,
        }
        self.state = GuestState::Running;
        Ok(())
    }
}

impl From<GuestState> for VmState {
    fn from(state: GuestState) -> Self {
        match state {
            GuestState::Running => VmState::Running,
            GuestState::Paused | GuestState::Loaded => VmState::Paused,
        }
    }
}

/// The VM was started without a balloon.
pub fn no_balloon(what: &str) -> Fault {
    Fault::new(format!("{what}: No balloon device found."))
}
