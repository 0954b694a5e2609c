//! Standing still for a snapshot.
//!
//! ```text
//! Hold ─► agent: Hold ─► Held ─► Done │ client: snapshot by the VMM, machine paused; copy of the disk │ Release, or
//!                                     │                                          hung up ─► machine goes on, Release
//! ```
//!
//! What a copy of the machine finds in its pipes was then seen by nobody, and nobody misses it.

use agent_protocol::message::HostMessage;
use vmm::control;

use super::life::{Life, State, ask_vmm};
use super::protocol::Reply;
use crate::session::SessionError;

impl Life<'_> {
    /// A client wants to make a snapshot.
    pub(super) fn hold(&mut self, number: usize) -> Result<(), SessionError> {
        let refused = match self.state {
            _ if self.held => Some("a snapshot of it is being made already"),
            _ if self.is_paused() => Some("it is paused: unpause it first"),
            _ if self.is_rewired() => Some(
                "its networks were changed while it ran: restart it first, so that a copy has the same machine",
            ),
            State::Running => None,
            _ => Some("its process does not run yet, or not any more"),
        };
        if let Some(why) = refused {
            self.setup.hub.tell(number, &Reply::Refused(why.to_owned()));
            return Ok(());
        }
        self.held = true;
        self.setup.hub.set_holder(number);
        self.send(&HostMessage::Hold)
    }

    /// The agent lets the process be.
    pub(super) fn on_held(&mut self) {
        self.setup.hub.tell_holder(&Reply::Done);
    }

    /// Lets everything go on, if it was held.
    pub(super) fn release(&mut self) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        self.setup.hub.end_holding();
        if let Some(socket) = self.setup.config.control.as_deref() {
            // The VMM leaves it paused for the copy of the disk, or will. One that runs refuses, which is well.
            let _ = ask_vmm(socket, &control::Request::Resume);
        }
        // A broken session shows itself to whoever reads it.
        let _ = self.send(&HostMessage::Release);
    }

    /// Whoever held it may have died.
    pub(super) fn check_holder(&mut self) {
        if self.held && !self.setup.hub.has_holder() {
            self.release();
        }
    }
}
