//! A VM to a snapshot and back.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{RestoreVmError, SaveError, Vm};
use crate::config::VmConfig;
use crate::snapshot::{self, Fingerprint, Snapshot, Times, WriteError, Written};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state could not be read.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The files could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Vm {
    /// Writes a snapshot of this paused VM to the new directory `directory`. Its disks are the caller's to copy.
    pub fn snapshot(&mut self, directory: &Path) -> Result<Written, SnapshotError> {
        let state = self.save_state()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let times = Times { realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX) };
        Ok(snapshot::write(directory, &self.memory, &self.fingerprint(), &state, times)?)
    }

    /// Builds the VM of `config`, which goes on where the snapshot in `directory` stopped.
    pub fn from_snapshot(config: &VmConfig, directory: &Path) -> Result<Self, RestoreVmError> {
        let snapshot = Snapshot::read(directory)?;
        // Before anything is made of this memory size; the rest can only be compared later.
        snapshot.fingerprint.check_size(config.vcpus, config.mem_size_mib)?;
        let memory = snapshot.map_memory()?;
        let vm = Self::assemble(config, memory, snapshot.state.console(), |_| Ok(()))?;
        snapshot.fingerprint.check(&vm.fingerprint())?;
        vm.load_state(&snapshot.state)?;
        Ok(vm)
    }

    /// What a snapshot of this VM needs of the machine that it is restored on.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            vcpus: self.config.vcpus,
            mem_size_mib: self.config.mem_size_mib,
            devices: self.machine.slots.iter().map(|slot| slot.transport.device_id()).collect(),
            console: self.machine.console.is_some(),
            emulated_ring0: self.emulated_ring0,
            cpuid: snapshot::cpuid(&self.cpuid),
        }
    }
}
