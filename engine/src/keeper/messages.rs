//! What the agent says, and what is done about it in each state.

use std::time::Instant;

use agent_protocol::PROTOCOL_VERSION;
use agent_protocol::message::{AgentMessage, HostMessage};

use super::life::{Agent, Change, Life, State};
use super::protocol::Reply;
use crate::log::Stream;
use crate::session::{Outcome, SessionError, shown};
use crate::trace::monotonic_ns;

impl Life<'_> {
    /// One message came.
    pub(super) fn on_message(&mut self, message: AgentMessage) -> Result<Option<Outcome>, SessionError> {
        match (self.state, message) {
            (State::Greeting, AgentMessage::Hello { protocol, agent_start_ns, now_ns, .. }) => {
                self.greet(protocol, now_ns.saturating_sub(agent_start_ns))?;
            }
            (State::Starting, AgentMessage::Started { .. }) => {
                self.setup.trace.end("exec");
                self.state = State::Running;
                self.setup.hub.set_running(true);
                if let Some(checker) = &mut self.setup.health {
                    checker.begin(Instant::now());
                }
                (self.setup.changed)(Change::Started);
            }
            (State::Starting | State::Running, AgentMessage::Stdout(bytes)) => {
                self.output(Stream::Stdout, bytes);
            }
            (State::Starting | State::Running, AgentMessage::Stderr(bytes)) => {
                self.output(Stream::Stderr, bytes);
            }
            (State::Starting | State::Running, AgentMessage::StdinCredit(bytes)) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                // A hostile agent gets no more than the protocol's window in flight.
                self.stdin_credit = self.stdin_credit.saturating_add(bytes).min(agent_protocol::STDIN_WINDOW);
            }
            (State::Starting | State::Running, AgentMessage::Exited(status)) => self.leave(status)?,
            (State::Greeting | State::Starting | State::Running, AgentMessage::Failed { kind, message }) => {
                return Ok(Some(Outcome::NotStarted { kind, message: shown(&message) }));
            }
            (State::Running, AgentMessage::Held) => self.on_held(),
            // What follows the end of the process does not matter.
            (State::Leaving(_), _) => {}
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
        Ok(())
    }

    pub(super) fn send_plan(&mut self) -> Result<(), SessionError> {
        let plan = (self.setup.plan)(self.setup.hub.size());
        let Some(link) = &mut self.link else { return Ok(()) };
        let plan = Box::new(plan);
        let message = if self.setup.adopts { HostMessage::Adopt(plan) } else { HostMessage::Start(plan) };
        link.send(&message).map_err(|source| self.broken(source))
    }

    fn output(&mut self, stream: Stream, bytes: Vec<u8>) {
        if !self.first_byte {
            self.first_byte = true;
            self.setup.trace.end("first byte");
        }
        if let Some(error) = self.setup.hub.output(stream, bytes) {
            let text = format!("the container's log has a gap from here on: {error}");
            self.setup.hub.tell_all(&Reply::Notice(text));
        }
    }
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
        AgentMessage::Pieces(_) => "Pieces",
        AgentMessage::Declined => "Declined",
        AgentMessage::Held => "Held",
        AgentMessage::Usage(_) => "Usage",
        AgentMessage::Rewired => "Rewired",
    }
}
