//! What the control socket can ask of a VM.

use std::fs::File;
use std::path::{Path, PathBuf};

use devices::rate::RateLimits;
use devices::virtio::balloon::BalloonControl;

use super::saving::{self, Save, Saving};
use super::snapshot::SnapshotError;
use super::{SaveError, SaveOrder, SnapshotFiles, Vcpus, Vm, VmError};
use crate::control::{Answer, Asked, Done, Refusal, RefusalKind, Request, Server, ServerError};
use crate::snapshot::Snapshot;

impl Vm {
    /// Makes the control socket `path` and serves it while the VM runs.
    pub fn control_at(&mut self, path: &Path) -> Result<(), ServerError> {
        self.worker.subscribe(Box::new(Server::listen(path, self.reporter.clone())?));
        Ok(())
    }

    /// Does what a client asked for and answers, now or when it is done.
    pub(super) fn serve(&mut self, mut asked: Asked) {
        let saves = matches!(asked.request, Request::Snapshot { .. });
        let descriptor = if saves { None } else { asked.take_descriptor() };
        let done = match &asked.request {
            Request::Status => Ok(self.status()),
            Request::Pause => self.pause().map(|()| Done::default()).map_err(Refusal::from),
            Request::Resume => self.resume_for().map(|()| Done::default()).map_err(Refusal::from),
            Request::Snapshot { .. } => match self.save_for(asked) {
                Some((asked, result)) => return asked.answer(&result.map_or_else(Answer::Error, Answer::Ok)),
                None => return,
            },
            Request::Balloon { mib } => self.inflate(*mib),
            Request::PlugNet(order) => self.plug_net(order, descriptor),
            Request::Unplug { name } => self.unplug(name),
            Request::Limit { device, limits } => self
                .set_limits(device, *limits)
                .map(|()| Done::default())
                .map_err(|message| Refusal { kind: RefusalKind::Request, message }),
        };
        asked.answer(&done.map_or_else(Answer::Error, Answer::Ok));
    }

    /// Resumes, or sees to it that a save does not leave the VM paused.
    fn resume_for(&mut self) -> Result<(), VmError> {
        match &mut self.saving {
            Some(saving) if saving.stay_paused && matches!(self.vcpus, Vcpus::Running(_)) => {
                saving.stay_paused = false;
                Ok(())
            }
            _ => self.resume(),
        }
    }

    fn status(&self) -> Done {
        Done {
            state: Some(self.vcpus.state().to_owned()),
            vcpus: Some(self.config.vcpus),
            mem_size_mib: Some(self.config.mem_size_mib),
            balloon_mib: self.balloon().map(BalloonControl::actual_mib),
            ..Done::default()
        }
    }

    /// Presses Ctrl+Alt+Del; false if there is no keyboard, or the guest does not read what was pressed before.
    pub(crate) fn ctrl_alt_del(&self) -> bool {
        self.machine.keyboard.as_ref().is_some_and(|keyboard| keyboard.ctrl_alt_del())
    }

    /// Puts the file `path` in place of the medium of `device`, as the guest calls it.
    pub(crate) fn change_medium(&self, device: &str, path: &Path) -> Result<(), String> {
        let slot = self.machine.slots.iter().find(|slot| slot.transport.name() == device);
        slot.ok_or_else(|| format!("there is no device {device}"))?.transport.change_medium(path)
    }

    fn inflate(&self, mib: u32) -> Result<Done, Refusal> {
        let refusal = |message| Refusal { kind: RefusalKind::Request, message };
        let balloon = self.balloon().ok_or_else(|| refusal("this VM has no balloon".to_owned()))?;
        balloon.set_target(mib).map_err(|error| refusal(error.to_string()))?;
        Ok(Done::default())
    }

    /// Replaces the limits of the disk or interface that the guest calls `device`.
    pub fn set_limits(&self, device: &str, limits: RateLimits) -> Result<(), String> {
        let rates = &self.machine.rates;
        let control = rates.get(device).ok_or_else(|| {
            let mut names: Vec<_> = rates.keys().map(String::as_str).collect();
            names.sort_unstable();
            format!("no device {device:?} has limits here; these have: {}", names.join(", "))
        })?;
        control.set(limits);
        Ok(())
    }

    /// Saves a paused VM at once; a running one is saved by a thread, whose end answers.
    fn save_for(&mut self, mut asked: Asked) -> Option<(Asked, Result<Done, Refusal>)> {
        let (files, base) = asked.take_files();
        let begun = self.begin_save(&asked.request, files, base);
        let (save, stay_paused) = match begun {
            Ok(Begun::Running { save, stay_paused }) => (save, stay_paused),
            Ok(Begun::Done(done)) => return Some((asked, Ok(done))),
            Err(refusal) => return Some((asked, Err(refusal))),
        };
        match Saving::start(save, stay_paused, asked, self.reporter.clone(), self.filters.map(|of| of.saver))
        {
            Ok(saving) => {
                self.saving = Some(saving);
                None
            }
            Err(failed) => {
                let (error, asked) = *failed;
                let message = format!("cannot start a thread that saves the VM: {error}");
                Some((asked, Err(Refusal { kind: RefusalKind::Host, message })))
            }
        }
    }

    fn begin_save(
        &mut self,
        request: &Request,
        files: Option<SnapshotFiles>,
        base_state: Option<File>,
    ) -> Result<Begun, Refusal> {
        let Request::Snapshot { dir, base, track, stay_paused } = request else {
            return Ok(Begun::Done(Done::default()));
        };
        if let Some(path) = std::iter::once(dir).chain(base).find(|path| !path.is_absolute()) {
            let message = format!("{} is not absolute", path.display());
            return Err(Refusal { kind: RefusalKind::Request, message });
        }
        if self.saving.is_some() {
            return Err(VmError::from(saving::busy()).into());
        }
        let read = |base: &PathBuf| match base_state {
            Some(state) => Snapshot::read_from(base, state),
            None => Snapshot::read(base),
        };
        let base = base.as_ref().map(read).transpose().map_err(|error| Refusal {
            kind: RefusalKind::Request,
            message: crate::text::with_causes(&error),
        })?;
        let base = base.map(|base| base.identity.id);
        let order = SaveOrder { directory: dir.clone(), base, track: *track, note: Vec::new(), files };
        if matches!(self.vcpus, Vcpus::Running(_)) {
            let save = Save::begin(order, self.log.clone())?;
            return Ok(Begun::Running { save, stay_paused: *stay_paused });
        }
        let written = self.snapshot_as(order)?;
        Ok(Begun::Done(Done { memory_bytes: Some(written.memory_bytes), ..Done::default() }))
    }
}

/// What a request for a snapshot came to so far.
enum Begun {
    /// The VM was paused: it is saved.
    Done(Done),
    /// It runs: there is a thread to be started.
    Running { save: Save, stay_paused: bool },
}

impl From<VmError> for Refusal {
    fn from(error: VmError) -> Self {
        let kind = match error {
            VmError::State(_) => RefusalKind::State,
            VmError::Vcpu(_) | VmError::Worker(_) | VmError::Renew(_) | VmError::Filter(_) => {
                RefusalKind::Host
            }
        };
        Refusal { kind, message: crate::text::with_causes(&error) }
    }
}

impl From<SnapshotError> for Refusal {
    fn from(error: SnapshotError) -> Self {
        let kind = match error {
            SnapshotError::Save(SaveError::State(_)) | SnapshotError::Vm(VmError::State(_)) => {
                RefusalKind::State
            }
            SnapshotError::Base { .. } => RefusalKind::Request,
            _ => RefusalKind::Host,
        };
        Refusal { kind, message: crate::text::with_causes(&error) }
    }
}
