//! What vCPU threads and devices tell the thread that owns the VM.
//!
//! A report never blocks the one who makes it. Each kind is bounded: the guest cannot make the queue grow.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::VmExit;
use crate::control::Asked;
use crate::snapshot::Written;
use crate::vm::SnapshotError;

/// One report.
#[derive(Debug)]
pub enum Report {
    /// The first vCPU enters the guest for the first time; CLOCK_MONOTONIC nanoseconds.
    FirstRun {
        /// When.
        at_ns: u64,
    },
    /// A device's driver set DRIVER_OK for the first time.
    DriverReady {
        /// Name of the device in the guest.
        device: String,
    },
    /// A client of the control socket wants something; it waits for the answer before it asks again.
    Asked(Asked),
    /// A save has written what it can while the guest runs, and waits for a pause.
    Copied,
    /// A save ended.
    Saved(Result<Written, SnapshotError>),
    /// The guest ended, or cannot go on. Only the first one counts.
    Exit(VmExit),
}

/// The sending side; cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    inner: Arc<Inner>,
}

struct Inner {
    sender: Mutex<Sent>,
    wake: EventFd,
}

struct Sent {
    sender: Sender<Report>,
    /// Set once an exit was reported: further ones say nothing new.
    exited: bool,
}

/// The receiving side.
pub struct Reports {
    receiver: Receiver<Report>,
    wake: EventFd,
}

/// Makes a queue of reports.
pub fn channel() -> std::io::Result<(Reporter, Reports)> {
    let wake = EventFd::new(EFD_NONBLOCK)?;
    let (sender, receiver) = mpsc::channel();
    let inner = Inner { sender: Mutex::new(Sent { sender, exited: false }), wake: wake.try_clone()? };
    Ok((Reporter { inner: Arc::new(inner) }, Reports { receiver, wake }))
}

impl Reporter {
    /// Queues `report` and wakes the owner of the VM. Does nothing once the owner is gone.
    pub fn send(&self, report: Report) {
        let mut sent = self.inner.sender.lock().expect("invariant: nobody panics while holding the lock");
        if matches!(report, Report::Exit(_)) && std::mem::replace(&mut sent.exited, true) {
            return;
        }
        // Both fail only when the receiving side was dropped or a wake-up is pending already.
        let _ = sent.sender.send(report);
        let _ = self.inner.wake.write(1);
    }

    /// Reports the end of the guest.
    pub fn exit(&self, exit: VmExit) {
        self.send(Report::Exit(exit));
    }
}

impl Reports {
    /// Readable while reports may be there. To be read before the reports are taken, so that none is missed.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The oldest report. Call until `None` after each wake-up.
    pub fn next(&self) -> Option<Report> {
        self.receiver.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_exit_is_reported() {
        let (reporter, reports) = channel().unwrap();
        reporter.exit(VmExit::PowerOff);
        reporter.clone().exit(VmExit::Reset);
        assert!(matches!(reports.next(), Some(Report::Exit(VmExit::PowerOff))));
        assert!(reports.next().is_none());
    }

    #[test]
    fn a_report_wakes_the_owner() {
        let (reporter, reports) = channel().unwrap();
        assert!(reports.wake().read().is_err());
        reporter.send(Report::DriverReady { device: "vda".into() });
        assert_eq!(reports.wake().read().unwrap(), 1);
    }
}
