//! `lighter network connect` and `disconnect` of a container that runs: keeper and VMM change the machine, the agent
//! changes the guest.

use std::time::Duration;

use agent_protocol::message::{AgentMessage, HostMessage, InterfacePlan};

use crate::container::record::Record;
use crate::dirs::Dirs;
use crate::keeper::client::{self, AskError};
use crate::keeper::protocol::Request;
use crate::network::spec::Endpoint;
use crate::network::{NetworkError, Networks};
use crate::session::question::{self, QuestionError};

/// What a guest may take to find a device or to let go of one. A probe takes a third of a second where ring 0 is emulated.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why a running container's networks are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RewireError {
    /// The host's part.
    #[error(transparent)]
    Keeper(#[from] AskError),
    /// The guest's part.
    #[error("cannot change the interfaces in container {name}")]
    Guest {
        /// The container.
        name: String,
        /// Why.
        source: QuestionError,
    },
    /// Nothing to leave.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Puts the running container `record` into one more network.
pub fn connect(record: &Record, endpoint: &Endpoint) -> Result<(), RewireError> {
    let wired = client::rewire(record, &Request::Connect(endpoint.clone()))?;
    let Some(interface) = wired.interface else { return Ok(()) };
    bring_up(record, wired.slot, interface).inspect_err(|_| {
        // Nobody would use it. That it cannot be undone either matters less than why it failed.
        let _ = client::rewire(record, &Request::Disconnect(endpoint.network.clone()));
    })
}

/// Takes the running container `record` out of the network `network`.
pub fn disconnect(dirs: &Dirs, record: &Record, network: &str) -> Result<(), RewireError> {
    let guests = Networks::here(dirs)?.guests(network)?;
    let guest = guests.into_iter().find(|guest| guest.container == record.spec.id.as_str());
    let guest = guest.ok_or_else(|| NetworkError::NotConnected { network: network.to_owned() })?;
    if !guest.ports.is_empty() {
        return Err(NetworkError::Fixed { why: "its published ports lead through that network" }.into());
    }
    ask(record, &HostMessage::Disconnect { mac: guest.mac.0 })?;
    let wired = client::rewire(record, &Request::Disconnect(network.to_owned()))?;
    wired.interface.map_or(Ok(()), |interface| bring_up(record, None, interface))
}

fn bring_up(record: &Record, slot: Option<u8>, interface: InterfacePlan) -> Result<(), RewireError> {
    ask(record, &HostMessage::Connect { slot, interface })
}

fn ask(record: &Record, message: &HostMessage) -> Result<(), RewireError> {
    let rewired = |answer| matches!(answer, AgentMessage::Rewired).then_some(());
    question::ask(&record.vsock(), message, TIMEOUT, rewired)
        .map_err(|source| RewireError::Guest { name: record.name.clone(), source })
}
