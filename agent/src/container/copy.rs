//! A copy of a running container: held in one machine, adopted in another.
//!
//! ```text
//! session ── Hold ──► Container::hold ── Release ──► session           (the machine goes on)
//!                         └── snapshot ── restore ── Adopt ──► session (the copy)
//! ```
//!
//! Between Hold and Release nothing that the main process wrote is on its way to the host, so whatever a copy
//! finds in the pipes was seen by nobody.

use std::io::Read as _;

use agent_protocol::message::{ContainerPlan, ExitStatus};
use rustix::process::Pid;

use super::{Container, State, random};
use crate::failure::{Context, Failure};
use crate::process::Process;
use crate::{clock, network};

/// What systemd and others take for the machine's identity.
const MACHINE_ID: &str = "/etc/machine-id";

impl Container {
    /// Keeps the main process for whoever wants it next.
    pub fn hold(&mut self, process: Process) {
        self.held = Some(process);
    }

    /// Gives the held process back.
    pub fn release(&mut self) -> Option<Process> {
        self.held.take()
    }

    /// A child of the agent ended, maybe the held process.
    pub fn child_ended(&mut self, pid: Pid, status: ExitStatus) {
        if let Some(process) = self.held.as_mut().filter(|process| process.pid() == pid) {
            process.ended(status);
        }
    }

    /// Becomes the container of `plan`, whose process runs already, and gives that process.
    pub fn adopt(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        if !matches!(self.state, State::Running(_)) || self.held.is_none() {
            return Err(Failure::agent("this machine is no copy of a running container"));
        }
        random::reseed(&plan.entropy);
        clock::set_realtime(plan.realtime_ns).during("set the clock")?;
        rustix::system::sethostname(plan.hostname.as_bytes()).during("set the host name")?;
        if let Some(network) = &plan.network {
            if let Some(before) = &self.network {
                network::forget(before)?;
            }
            network::configure(network)?;
            self.network = Some(network.clone());
        }
        if let Some(prepared) = &self.prepared {
            prepared.files.write(plan)?;
        }
        renew_machine_id();
        self.power_off_at_exit = plan.power_off_at_exit;
        let mut process = self.held.take().ok_or_else(|| Failure::agent("the process is gone"))?;
        process.adopted();
        Ok(process)
    }
}

/// Draws another machine ID where the container has one. A container without it, or with a read-only one, has
/// programs that do not care.
fn renew_machine_id() {
    let mut bytes = [0; 16];
    let has_one = std::fs::metadata(MACHINE_ID).is_ok_and(|file| file.is_file() && file.len() > 0);
    if has_one && std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).is_ok()
    {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = std::fs::write(MACHINE_ID, text + "\n");
    }
}
