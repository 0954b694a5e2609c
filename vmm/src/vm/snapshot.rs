//! A VM to a snapshot and back.

use std::io;
use std::path::Path;
use std::time::Instant;

use devices::GuestRam;

use super::saving::{Frozen, Save, SaveOrder, locked};
use super::{RestoreVmError, SaveError, Vcpus, Vm, VmError};
use crate::clock;
use crate::config::VmConfig;
use crate::control::{Answer, Done, Refusal};
use crate::dirty::{DirtyError, DirtyLog};
use crate::snapshot::{self, Fingerprint, Snapshot, SnapshotId, Times, WriteError, Written};

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state could not be read.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The files could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Dirty pages are not known.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// The VM could not be paused, or not be resumed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory could not be read.
    #[error("cannot copy guest memory")]
    Copy(#[source] io::Error),
    /// Pages are not known since the base that was named.
    #[error("the pages written since that base are not known: {}", known_since(known))]
    Base {
        /// The base since which they are known.
        known: Option<SnapshotId>,
    },
    /// The VM ended first.
    #[error("the VM ended before it was saved")]
    Abandoned,
}

fn known_since(known: &Option<SnapshotId>) -> String {
    match known {
        Some(id) => format!("they are known since snapshot {id}"),
        None => "take a full snapshot with `track` first".to_owned(),
    }
}

impl Vm {
    /// Writes a full snapshot of this paused VM to the new directory `directory`. Its disks are the caller's to
    /// copy.
    pub fn snapshot(&mut self, directory: &Path) -> Result<Written, SnapshotError> {
        self.snapshot_as(SaveOrder::full(directory))
    }

    /// Writes a snapshot of this paused VM.
    pub fn snapshot_as(&mut self, order: SaveOrder) -> Result<Written, SnapshotError> {
        if !matches!(self.vcpus, Vcpus::Paused(_)) {
            return Err(SaveError::from(self.vcpus.refuse("save")).into());
        }
        let save = Save::begin(order, self.log.clone())?;
        let mut memory_bytes = save.write_now(false)?;
        let frozen = self.freeze(&save)?;
        memory_bytes += save.finish(&frozen)?;
        Ok(Written { memory_bytes })
    }

    /// The snapshot since which it is known what the guest wrote, if that is known.
    pub fn known_since(&self) -> Option<SnapshotId> {
        locked(&self.log).base()
    }

    fn freeze(&mut self, save: &Save) -> Result<Frozen, SnapshotError> {
        let state = self.save_state()?;
        save.freeze(self.fingerprint(), state, Times { realtime_ns: clock::realtime_ns() })
    }

    /// The thread of a save has copied what it could: pauses the VM for the rest.
    pub(super) fn saver_copied(&mut self) {
        let Some(mut saving) = self.saving.take() else { return };
        let begin = Instant::now();
        let running = matches!(self.vcpus, Vcpus::Running(_));
        let paused = if running { self.pause() } else { Ok(()) };
        let frozen = paused.map_err(SnapshotError::from).and_then(|()| self.freeze(&saving.save));
        saving.stay_paused = saving.stays_paused();
        if running && !(saving.stay_paused && frozen.is_ok()) && matches!(self.vcpus, Vcpus::Paused(_)) {
            // A vCPU thread that is gone has reported why.
            let _ = self.resume();
        }
        let (frozen, error) = match frozen {
            Ok(frozen) => (Some(frozen), None),
            Err(error) => (None, Some(error)),
        };
        saving.hand_over(frozen, begin);
        saving.failed = error;
        self.saving = Some(saving);
    }

    /// The thread of a save is done: answers who asked for it.
    pub(super) fn saver_done(&mut self, result: Result<Written, SnapshotError>) {
        let Some(mut saving) = self.saving.take() else { return };
        let result = match saving.failed.take() {
            Some(error) => Err(error),
            None => result,
        };
        let paused_us = saving.paused.filter(|_| !saving.stay_paused).map(|paused| paused.as_micros() as u64);
        let answer = match result {
            Ok(written) => {
                Answer::Ok(Done { paused_us, memory_bytes: Some(written.memory_bytes), ..Done::default() })
            }
            Err(error) => Answer::Error(Refusal::from(error)),
        };
        saving.answer(&answer);
    }

    /// Builds the VM of `config`, which goes on where the snapshot in `directory` stopped.
    pub fn from_snapshot(config: &VmConfig, directory: &Path) -> Result<Self, RestoreVmError> {
        let snapshot = Snapshot::read(directory)?;
        // Before anything is made of this memory size; the rest can only be compared later.
        snapshot.fingerprint.check_size(config.vcpus, config.memory())?;
        let bases = config.restore.as_ref().map_or(&[][..], |restore| &restore.bases);
        let memory = snapshot.map_memory(bases)?;
        Self::from_memory(config, &snapshot, memory)
    }

    /// The same where `memory` holds what it held when `snapshot` was taken.
    pub fn from_memory(
        config: &VmConfig,
        snapshot: &Snapshot,
        memory: GuestRam,
    ) -> Result<Self, RestoreVmError> {
        let track = config.restore.as_ref().is_some_and(|restore| restore.track);
        let mut vm = Self::assemble(config, memory, snapshot.state.console(), |_| Ok(()))?;
        snapshot.fingerprint.check(&vm.fingerprint())?;
        vm.resume_from(&snapshot.state)?;
        if track {
            *locked(&vm.log) = DirtyLog::new(vm.vm.clone(), vm.memory.clone(), Some(snapshot.identity.id));
        }
        Ok(vm)
    }

    /// What a snapshot of this VM needs of the machine that it is restored on.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            vcpus: self.config.vcpus,
            mem_size_mib: self.config.mem_size_mib,
            hotplug_mib: self.config.memory().hotplug_mib,
            devices: self.machine.slots.iter().map(|slot| slot.transport.device_id()).collect(),
            console: self.machine.console.is_some(),
            emulated_ring0: self.emulated_ring0,
            cpuid: snapshot::cpuid(&self.cpuid),
        }
    }
}
