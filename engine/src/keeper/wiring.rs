//! Networks that a running container joins and leaves: the host's side of it and the machine's. What the guest has to
//! do is for the client, who can wait for it.
//!
//! ```text
//! client: Connect ─► lease, TAP ─► VMM: device in a spare slot ─► Wired ─► client: agent looks at the slot
//! client: agent lets go ─► Disconnect ─► VMM: slot empty ─► TAP and lease given back ─► Wired
//! ```

use std::os::fd::AsFd as _;
use std::path::Path;

use vmm::config::RateLimits;
use vmm::control::{self, PlugNet};
use vmm::text::with_causes;

use super::life::{Life, State, ask_vmm, connect_vmm};
use super::protocol::{Reply, Wired};
use crate::network::spec::Endpoint;
use crate::network::{Attachment, Request};

/// The networks of a running machine.
pub struct Wiring<'a> {
    /// The container's places in them.
    pub attachment: &'a mut Attachment,
    /// Who it is.
    pub request: Request<'a>,
    /// What an interface may carry.
    pub limits: RateLimits,
    /// They are not those any more that the machine started with.
    pub changed: bool,
}

impl Life<'_> {
    /// A client wants the container in one more network.
    pub(super) fn connect(&mut self, number: usize, endpoint: &Endpoint) {
        self.rewire(number, |wiring, socket| wiring.connect(endpoint, socket));
    }

    /// A client wants the container out of a network; its guest has let go.
    pub(super) fn disconnect(&mut self, number: usize, network: &str) {
        self.rewire(number, |wiring, socket| wiring.disconnect(network, socket));
    }

    /// A copy of the machine could not be gone on from: its devices are others than its container's description says.
    pub(super) fn is_rewired(&self) -> bool {
        self.setup.wiring.as_ref().is_some_and(|wiring| wiring.changed)
    }

    fn rewire(&mut self, number: usize, act: impl FnOnce(&mut Wiring<'_>, &Path) -> Result<Wired, String>) {
        let stands = self.state != State::Running || self.is_paused() || self.held;
        let wired = match (&mut self.setup.wiring, self.setup.config.control.as_deref()) {
            _ if stands => Err("it is paused, held for a snapshot, or not running any more".to_owned()),
            (Some(wiring), Some(socket)) => act(wiring, socket),
            _ => Err("it has no machine whose interfaces could come and go: stop it first".to_owned()),
        };
        self.setup.hub.tell(number, &wired.map_or_else(Reply::Refused, Reply::Wired));
    }
}

impl Wiring<'_> {
    fn connect(&mut self, endpoint: &Endpoint, socket: &Path) -> Result<Wired, String> {
        let joined = self.attachment.join(&self.request, endpoint).map_err(|error| with_causes(&error))?;
        let order = PlugNet { name: joined.device, mac: joined.plan.mac, limits: self.limits };
        let plugged = connect_vmm(socket).and_then(|mut vmm| {
            vmm.ask_with(&control::Request::PlugNet(order), joined.tap.as_fd())
                .map_err(|error| with_causes(&error))
        });
        match plugged {
            Ok(done) => {
                self.changed = true;
                Ok(Wired { slot: done.slot, interface: Some(joined.plan) })
            }
            Err(error) => {
                drop(joined.tap);
                // It is out again as well as it goes; the first error matters more.
                let _ = self.attachment.part(&endpoint.network);
                Err(error)
            }
        }
    }

    fn disconnect(&mut self, network: &str, socket: &Path) -> Result<Wired, String> {
        let device = self.attachment.device_in(network).map_err(|error| with_causes(&error))?;
        ask_vmm(socket, &control::Request::Unplug { name: device })?;
        self.changed = true;
        let interface = self.attachment.part(network).map_err(|error| with_causes(&error))?;
        Ok(Wired { slot: None, interface })
    }
}
