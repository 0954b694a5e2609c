//! What the agent says, and what is done about it in each state.

use std::time::Instant;

use agent_protocol::PROTOCOL_VERSION;
use agent_protocol::message::{AgentMessage, HostMessage};

use super::supervisor::{Agent, Session, State};
use super::terminal::RawMode;
use super::{Outcome, SessionError};
use crate::trace::monotonic_ns;

/// Bytes of an agent's message that are shown.
const MAX_MESSAGE: usize = 4 << 10;

impl Session<'_> {
    /// One message came.
    pub(super) fn on_message(&mut self, message: AgentMessage) -> Result<Option<Outcome>, SessionError> {
        match (self.state, message) {
            (State::Greeting, AgentMessage::Hello { protocol, agent_start_ns, now_ns, .. }) => {
                self.greet(protocol, now_ns.saturating_sub(agent_start_ns))?;
            }
            (State::Starting, AgentMessage::Started { .. }) => {
                self.setup.trace.end("exec");
                self.state = State::Running;
            }
            (State::Starting | State::Running, AgentMessage::Stdout(bytes)) => {
                self.note_first_byte();
                self.stdout.push(&bytes);
            }
            (State::Starting | State::Running, AgentMessage::Stderr(bytes)) => {
                self.note_first_byte();
                self.stderr.push(&bytes);
            }
            (State::Starting | State::Running, AgentMessage::StdinCredit(bytes)) => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.add_credit(bytes);
                }
            }
            (State::Starting | State::Running, AgentMessage::Exited(status)) => {
                self.raw_mode = None;
                self.state = State::Draining(status);
            }
            (State::Greeting | State::Starting | State::Running, AgentMessage::Failed { kind, message }) => {
                return Ok(Some(Outcome::NotStarted { kind, message: shown(&message) }));
            }
            // What follows the end of the process does not matter.
            (State::Draining(_), _) => {}
            (state, message) => {
                let name = name(&message);
                return Err(SessionError::Protocol(format!("sent {name} while the session was {state:?}")));
            }
        }
        Ok(None)
    }

    /// The agent is there: it gets the plan.
    fn greet(&mut self, protocol: u8, agent_ns: u64) -> Result<(), SessionError> {
        if protocol != PROTOCOL_VERSION {
            return Err(SessionError::Protocol(format!(
                "speaks protocol version {protocol}, this lighter {PROTOCOL_VERSION}: boot it with the agent of this lighter"
            )));
        }
        match self.setup.agent {
            Agent::Connects(_) => {
                self.setup.trace.end_at("kernel", monotonic_ns().saturating_sub(agent_ns));
                self.setup.trace.end("agent");
                self.send_plan()?;
                self.setup.trace.end("plan");
            }
            Agent::Listens(_) => self.setup.trace.end("resume"),
        }
        self.state = State::Starting;
        self.boot.progress(Instant::now());
        if let Some(stdin) = self.setup.streams.stdin.filter(|_| self.has_terminal) {
            let raw_mode = RawMode::enter(stdin);
            self.raw_mode = raw_mode
                .map_err(|source| SessionError::Host { action: "put the terminal into raw mode", source })?;
        }
        Ok(())
    }

    pub(super) fn send_plan(&mut self) -> Result<(), SessionError> {
        let plan = (self.setup.plan)();
        self.has_terminal = plan.process.terminal.is_some();
        let Some(link) = &mut self.link else { return Ok(()) };
        link.send(&HostMessage::Start(Box::new(plan))).map_err(|source| self.broken(source))
    }

    fn note_first_byte(&mut self) {
        if !self.first_byte {
            self.first_byte = true;
            self.setup.trace.end("first byte");
        }
    }
}

fn shown(message: &str) -> String {
    let bytes = message.as_bytes();
    crate::text::printable(bytes.get(..MAX_MESSAGE).unwrap_or(bytes))
}

fn name(message: &AgentMessage) -> &'static str {
    match message {
        AgentMessage::Hello { .. } => "Hello",
        AgentMessage::Prepared => "Prepared",
        AgentMessage::Started { .. } => "Started",
        AgentMessage::Failed { .. } => "Failed",
        AgentMessage::Stdout(_) => "Stdout",
        AgentMessage::Stderr(_) => "Stderr",
        AgentMessage::StdinCredit(_) => "StdinCredit",
        AgentMessage::Exited(_) => "Exited",
    }
}
