//! The thread of a vCPU and the handle that its owner holds.
//!
//! ```text
//!            Begin            Pause                Stop, or handle dropped
//!  (nothing) ─────► running ◄───────► paused ─────────────────────────────► gone
//!                      │       Resume    ▲ Save, Tsc
//!                      └─ guest ended ───┘
//! ```
//!
//! The thread owns the vCPU; everybody else sends it a command and, while it runs, a kick.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use vmm_sys_util::signal::Killable;

use super::kick::{self, Kickable};
use super::{Outcome, StateError, Vcpu, VcpuState};
use crate::clock;
use crate::report::{Report, Reporter};
use crate::seccomp::Filter;

/// Stack of a vCPU thread: its calls are shallow, and untouched pages cost nothing.
const STACK_SIZE: usize = 256 << 10;

/// What a vCPU thread can be told.
enum Command {
    /// Enter the guest for the first time.
    Begin,
    /// Leave the guest and answer.
    Pause(Sender<()>),
    /// Enter the guest.
    Resume,
    /// Answer with the vCPU's state; only while paused.
    Save(Sender<Result<VcpuState, StateError>>),
    /// Answer with the vCPU's TSC and its rate in kHz; only while paused.
    Tsc(Sender<Result<(u64, u32), StateError>>),
    /// End the thread.
    Stop,
}

/// Why a vCPU thread could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum VcpuThreadError {
    /// The thread could not be made.
    #[error("cannot start the thread of vCPU {id}")]
    Spawn {
        /// Number of the vCPU.
        id: u8,
        /// Why.
        source: std::io::Error,
    },
    /// The thread is gone.
    #[error("the thread of vCPU {id} is gone")]
    Gone {
        /// Number of the vCPU.
        id: u8,
    },
    /// The vCPU's state could not be read.
    #[error("cannot save vCPU {id}")]
    Save {
        /// Number of the vCPU.
        id: u8,
        /// Why.
        source: StateError,
    },
}

/// Owner's side of a vCPU thread. Dropping it ends the thread.
pub struct VcpuHandle {
    id: u8,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    /// Starts a thread that enters the guest when it is told to [`VcpuHandle::begin`], limited by `filter`. The kick
    /// handler is installed.
    pub fn start(vcpu: Vcpu, reporter: Reporter, filter: Option<Filter>) -> Result<Self, VcpuThreadError> {
        let id = vcpu.id;
        let (commands, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK_SIZE)
            .spawn(move || {
                if let Some(Err(error)) = filter.map(|filter| filter.install()) {
                    // Without its filter it must not run: the owner finds it gone.
                    return eprintln!("lighter-vmm: cannot limit the system calls of vCPU {id}: {error}");
                }
                run(vcpu, &receiver, &reporter);
            })
            .map_err(|source| VcpuThreadError::Spawn { id, source })?;
        Ok(VcpuHandle { id, commands, thread: Some(thread) })
    }

    /// Enters the guest for the first time.
    pub fn begin(&self) -> Result<(), VcpuThreadError> {
        self.send(Command::Begin)
    }

    /// Begins to take the vCPU out of the guest; the receiver gets a message once it is out.
    pub fn pause(&self) -> Result<Receiver<()>, VcpuThreadError> {
        let (done, receiver) = mpsc::channel();
        self.send(Command::Pause(done))?;
        self.kick();
        Ok(receiver)
    }

    /// Lets a paused vCPU go on.
    pub fn resume(&self) -> Result<(), VcpuThreadError> {
        self.send(Command::Resume)
    }

    /// State of a paused vCPU.
    pub fn save(&self) -> Result<VcpuState, VcpuThreadError> {
        let (answer, receiver) = mpsc::channel();
        self.send(Command::Save(answer))?;
        receiver
            .recv()
            .map_err(|_| VcpuThreadError::Gone { id: self.id })?
            .map_err(|source| VcpuThreadError::Save { id: self.id, source })
    }

    /// TSC of a paused vCPU, and its rate in kHz.
    pub fn tsc(&self) -> Result<(u64, u32), VcpuThreadError> {
        let (answer, receiver) = mpsc::channel();
        self.send(Command::Tsc(answer))?;
        receiver
            .recv()
            .map_err(|_| VcpuThreadError::Gone { id: self.id })?
            .map_err(|source| VcpuThreadError::Save { id: self.id, source })
    }

    fn send(&self, command: Command) -> Result<(), VcpuThreadError> {
        self.commands.send(command).map_err(|_| VcpuThreadError::Gone { id: self.id })
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // Fails only for a thread that has ended, which needs no kick.
            let _ = thread.kill(kick::signal());
        }
    }

    /// Tells the thread to end without waiting for it.
    pub fn stop(&self) {
        // Fails only when the thread is gone already.
        let _ = self.commands.send(Command::Stop);
        self.kick();
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by the panic hook; nothing is left to do about it.
            let _ = thread.join();
        }
    }
}

/// Body of the thread.
///
/// Commands are looked at after the thread became kickable and before each entry into the guest: one sent
/// earlier is seen there, one sent later comes with a kick that makes KVM_RUN return.
fn run(mut vcpu: Vcpu, commands: &Receiver<Command>, reporter: &Reporter) {
    let _kickable = Kickable::new(vcpu.fd_mut());
    let mut first = vcpu.id == 0;
    let mut running = false;
    loop {
        let command = if running { commands.try_recv().ok() } else { commands.recv().ok() };
        match command {
            Some(Command::Begin) => {
                running = true;
                #[cfg(feature = "compromised")]
                crate::compromised::act("vcpu");
            }
            Some(Command::Pause(done)) => {
                running = false;
                // The owner may have given up waiting.
                let _ = done.send(());
            }
            Some(Command::Resume) => {
                vcpu.tell_of_pause();
                running = true;
            }
            Some(Command::Save(answer)) => {
                let _ = answer.send(vcpu.save());
            }
            Some(Command::Tsc(answer)) => {
                let _ = answer.send(vcpu.tsc().and_then(|tsc| Ok((tsc, vcpu.tsc_khz()?))));
            }
            Some(Command::Stop) => return,
            None if running => {
                if std::mem::take(&mut first) {
                    reporter.send(Report::FirstRun { at_ns: clock::monotonic_ns() });
                }
                if let Outcome::Ended(exit) = vcpu.run() {
                    reporter.exit(exit);
                    running = false;
                }
            }
            // The owner is gone.
            None => return,
        }
    }
}
