//! A life without a VM: a warden in the place of the VMM and its guest.

use super::Keeper;
use super::life::Agent;
use crate::error::RunError;
use crate::isolation;
use crate::process::VmProcess;
use crate::session::Outcome;
use crate::volumes::spec::DiskPlaces;

impl Keeper<'_> {
    /// One start and run.
    pub(super) fn live_warded(&mut self) -> Result<Outcome, RunError> {
        self.renew(true)?;
        let mut attachment = self.attach()?;
        self.note_network(&attachment);
        self.trace.end("network");
        for socket in [self.container.vsock(), self.container.control()] {
            // Left by the life before this one.
            let _ = std::fs::remove_file(socket);
        }
        let shares = self.shares()?.into_iter().map(|share| share.source).collect();
        let config = isolation::warden_config(&self.spec, &self.container, Some(&attachment), shares);
        let warden = VmProcess::spawn_warden(&config, attachment.namespace(), &self.container.vmm_log())?;
        self.container.record_vmm(warden.id())?;
        let agent = Agent::Listens(self.container.vsock());
        let outcome = self.live_with(
            warden,
            (&isolation::no_machine(&self.container), agent),
            &mut attachment,
            &DiskPlaces::default(),
            false,
        );
        // Whatever a warden that was killed has left.
        warden::cgroup::sweep(self.spec.id.as_str());
        outcome
    }
}
