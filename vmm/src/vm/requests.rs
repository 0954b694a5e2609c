//! What the control socket can ask of a VM.

use std::path::Path;
use std::time::Instant;

use devices::virtio::balloon::BalloonControl;

use super::snapshot::SnapshotError;
use super::{Vcpus, Vm, VmError};
use crate::control::{Answer, Done, Refusal, RefusalKind, Request, Server, ServerError};

impl Vm {
    /// Makes the control socket `path` and serves it while the VM runs.
    pub fn control_at(&mut self, path: &Path) -> Result<(), ServerError> {
        self.worker.subscribe(Box::new(Server::listen(path, self.reporter.clone())?));
        Ok(())
    }

    /// Does what a client asked for.
    pub(super) fn serve(&mut self, request: &Request) -> Answer {
        let done = match request {
            Request::Status => Ok(self.status()),
            Request::Pause => self.pause().map(|()| Done::default()).map_err(Refusal::from),
            Request::Resume => self.resume().map(|()| Done::default()).map_err(Refusal::from),
            Request::Snapshot { dir } => self.snapshot_for(dir),
            Request::Balloon { mib } => self.inflate(*mib),
        };
        done.map_or_else(Answer::Error, Answer::Ok)
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

    fn inflate(&self, mib: u32) -> Result<Done, Refusal> {
        let refusal = |message| Refusal { kind: RefusalKind::Request, message };
        let balloon = self.balloon().ok_or_else(|| refusal("this VM has no balloon".to_owned()))?;
        balloon.set_target(mib).map_err(|error| refusal(error.to_string()))?;
        Ok(Done::default())
    }

    fn snapshot_for(&mut self, dir: &Path) -> Result<Done, Refusal> {
        if !dir.is_absolute() {
            let message = format!("dir {} is not absolute", dir.display());
            return Err(Refusal { kind: RefusalKind::Request, message });
        }
        let running = matches!(self.vcpus, Vcpus::Running(_));
        let start = Instant::now();
        if running {
            self.pause()?;
        }
        let written = self.snapshot(dir);
        if running {
            self.resume()?;
        }
        let paused_us = running.then(|| start.elapsed().as_micros() as u64);
        Ok(Done { paused_us, memory_bytes: Some(written?.memory_bytes), ..Done::default() })
    }
}

impl From<VmError> for Refusal {
    fn from(error: VmError) -> Self {
        let kind = match error {
            VmError::State(_) => RefusalKind::State,
            VmError::Vcpu(_) | VmError::Worker(_) | VmError::Renew(_) => RefusalKind::Host,
        };
        Refusal { kind, message: crate::text::with_causes(&error) }
    }
}

impl From<SnapshotError> for Refusal {
    fn from(error: SnapshotError) -> Self {
        let kind = match error {
            SnapshotError::Save(super::SaveError::State(_)) => RefusalKind::State,
            _ => RefusalKind::Host,
        };
        Refusal { kind, message: crate::text::with_causes(&error) }
    }
}
