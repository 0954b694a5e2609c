//! A running container's place in its networks, given back when it is dropped.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use agent_protocol::message::{InterfacePlan, NetworkPlan};
use vmm::config::{NetBackend, NetConfig};

use super::bridge::{Bridge, Lease, mac_of};
use super::claim::{self, Claim};
use super::guest::{Egress, Guest};
use super::port::{MAX_PUBLISHED, Publish, Published, Transport};
use super::services::{Denial, Places, Services, Settings as ServiceSettings, Target, denials};
use super::spec::{Endpoint, MAX_NETWORKS, Mac, NetworkMode, NetworkSpec};
use super::user::{self, Passt};
use super::veth::Namespace;
use super::wire::{Datagrams, Filter, Relay};
use super::{MTU, NetworkError, Networks, host, links, permission, resolver, tap, tap_name};
use crate::container::id::ContainerId;

/// Port of name servers: a container that has one itself gets none of lighter's.
const DNS_PORT: u16 = 53;
/// What `--add-host NAME:host-gateway` stands for.
const HOST_GATEWAY: &str = "host-gateway";

/// Who wants to be in which networks.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// Its name.
    pub name: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// What it wants. `Auto` is resolved.
    pub spec: &'a NetworkSpec,
}

/// The host's side of an interface of the machine.
#[derive(Debug)]
pub struct Interface {
    /// A TAP, or a stream of frames.
    pub fd: OwnedFd,
    backend: NetBackend,
    mac: [u8; 6],
}

/// A container's place in its networks. The machine must have ended when it is dropped.
#[derive(Debug)]
pub struct Attachment {
    networks: Networks,
    interfaces: Vec<Interface>,
    places: Vec<Place>,
    plan: NetworkPlan,
    claims: Vec<Claim>,
    published: Vec<Published>,
    denials: Option<denials::Listener>,
    services: Option<Services>,
    dns: super::spec::DnsSpec,
    passt: Option<Passt>,
    /// In front of passt, where not everything may leave, or UDP ports are published.
    relay: Option<Relay>,
    /// Where the guest's ends of its interfaces are, if it is no VM.
    namespace: Option<Namespace>,
    /// What limits its way out.
    egress: Option<Egress>,
}

/// A network that a running machine has joined.
#[derive(Debug)]
pub struct Joined {
    /// What the VMM calls the new interface.
    pub device: String,
    /// Its TAP.
    pub tap: OwnedFd,
    /// What the guest must know.
    pub plan: InterfacePlan,
}

/// A place in one bridge.
#[derive(Debug)]
struct Place {
    /// Number of its interface.
    index: usize,
    bridge: Bridge,
    guest: Guest,
    lease: Option<Lease>,
}

impl Networks {
    /// Puts the container into its networks. Published ports are its own from here on; they are served, as its
    /// questions for names are, after [`Attachment::serve`].
    pub fn attach(&self, request: &Request<'_>) -> Result<Attachment, NetworkError> {
        self.attach_to(request, None)
    }

    /// The same for a container that is no VM: its interfaces are in [`Attachment::namespace`].
    pub fn attach_namespace(&self, request: &Request<'_>) -> Result<Attachment, NetworkError> {
        self.attach_to(request, Some(Namespace::new().map_err(host("make a network namespace"))?))
    }

    fn attach_to(
        &self,
        request: &Request<'_>,
        namespace: Option<Namespace>,
    ) -> Result<Attachment, NetworkError> {
        let spec = request.spec;
        let mut attachment = Attachment {
            networks: self.clone(),
            interfaces: Vec::new(),
            places: Vec::new(),
            plan: names_only(spec),
            claims: Vec::new(),
            published: Vec::new(),
            denials: None,
            services: None,
            dns: spec.dns.clone(),
            passt: None,
            relay: None,
            namespace,
            egress: None,
        };
        match &spec.mode {
            NetworkMode::Auto | NetworkMode::None => {}
            NetworkMode::User => attachment.in_user_mode(request)?,
            NetworkMode::Bridges(endpoints) => attachment.on_bridges(request, endpoints)?,
        }
        Ok(attachment)
    }
}

impl Attachment {
    /// The machine's interfaces, `eth0` first, for it to inherit.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The machine has them.
    pub fn handed_over(&mut self) {
        self.interfaces.clear();
    }

    /// The network namespace with the interfaces of a container that is no VM.
    pub fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.namespace.as_ref().map(|namespace| namespace.0.as_fd())
    }

    /// What the guest must know.
    pub fn plan(&self) -> &NetworkPlan {
        &self.plan
    }

    /// Ports of the host that lead to the container.
    pub fn published(&self) -> &[Published] {
        &self.published
    }

    /// The container in each of its networks, by the network's name.
    pub fn places(&self) -> impl Iterator<Item = (&str, &Guest)> {
        self.places.iter().map(|place| (place.bridge.settings.network.as_str(), &place.guest))
    }

    /// Serves published ports and names from now on, and tells of every packet that `--egress-allow` denied. `vsock` is
    /// the path of the machine's vsock device; call it before the machine is started.
    pub fn serve(&mut self, vsock: &Path, on_denied: Box<dyn Fn(Denial) + Send>) -> Result<(), NetworkError> {
        if self.plan.interfaces.is_empty() {
            return Ok(());
        }
        let (filter, on_denied) = match &mut self.relay {
            Some(relay) => {
                relay.start(on_denied).map_err(host("start the relay of the user-mode network"))?;
                (relay.filter().cloned(), Box::new(|_| ()) as Box<dyn Fn(Denial) + Send>)
            }
            None => (None, on_denied),
        };
        let settings = ServiceSettings {
            claims: std::mem::take(&mut self.claims),
            target: match self.places.first() {
                Some(place) => {
                    Some(Target::Addresses(place.guest.ipv4.into(), place.guest.ipv6.map(IpAddr::V6)))
                }
                None => self.plan.forward.then(|| Target::Agent(vsock.to_owned())),
            },
            vsock: self.plan.resolver.then(|| vsock.to_owned()),
            servers: resolver::servers(&self.dns.servers),
            places: self.places_served(),
            denials: self.denials.take(),
            filter,
            on_denied,
        };
        self.services =
            Some(Services::start(settings).map_err(host("serve the container's ports and names"))?);
        Ok(())
    }

    /// Puts a running machine into one more network.
    pub fn join(&mut self, request: &Request<'_>, endpoint: &Endpoint) -> Result<Joined, NetworkError> {
        let why = match (&self.services, &self.namespace, &self.passt) {
            (_, Some(_), _) => Some("without a VM the interfaces stay as they are while it runs"),
            (_, _, Some(_)) => Some("it is in the user-mode network, which is alone"),
            (None, ..) => Some("it was started without a network"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(NetworkError::Fixed { why });
        }
        if self.places.iter().any(|place| place.bridge.settings.network == endpoint.network) {
            return Err(NetworkError::Fixed { why: "it is in that network already" });
        }
        let free = |index: &usize| self.places.iter().all(|place| place.index != *index);
        let index = (0..MAX_NETWORKS).find(free);
        let index = index.ok_or(NetworkError::Fixed { why: "it is in as many networks as are possible" })?;
        let networks = self.networks.clone();
        let _lock = networks.lock()?;
        let before = self.places.len();
        if let Err(error) = self.plug_in(request, index, endpoint) {
            self.leave_from(before);
            return Err(error);
        }
        self.tell_places();
        let device = device_name(index);
        match (self.interfaces.pop(), self.plan.interfaces.last()) {
            (Some(interface), Some(plan)) => Ok(Joined { device, tap: interface.fd, plan: plan.clone() }),
            _ => Err(NetworkError::Fixed { why: "it has no machine" }),
        }
    }

    /// What the VMM calls the interface in `network`, which a running machine may leave.
    pub fn device_in(&self, network: &str) -> Result<String, NetworkError> {
        let place = &self.places[self.position(network)?];
        if !place.guest.ports.is_empty() {
            return Err(NetworkError::Fixed { why: "its published ports lead through that network" });
        }
        Ok(device_name(place.index))
    }

    /// Takes a running machine, whose interface is gone, out of a network. Gives the interface that leads out of the host
    /// from now on, if that is another one.
    pub fn part(&mut self, network: &str) -> Result<Option<InterfacePlan>, NetworkError> {
        let position = self.position(network)?;
        let networks = self.networks.clone();
        let _lock = networks.lock()?;
        let mut place = self.places.remove(position);
        if let Some(lease) = place.lease.take() {
            place.bridge.leave(lease);
        }
        self.networks.remove_unused();
        let led_out = self.plan.interfaces.remove(position).gateway_v4.is_some();
        self.tell_places();
        let heir = self.places.iter().position(|place| !place.bridge.settings.internal).filter(|_| led_out);
        Ok(heir.map(|position| {
            let (bridge, plan) = (&self.places[position].bridge, &mut self.plan.interfaces[position]);
            plan.gateway_v4 = Some(bridge.settings.gateway);
            plan.gateway_v6 = bridge.gateway6().map(|(address, _)| address);
            plan.clone()
        }))
    }

    fn position(&self, network: &str) -> Result<usize, NetworkError> {
        let position = self.places.iter().position(|place| place.bridge.settings.network == network);
        position.ok_or_else(|| NetworkError::NotConnected { network: network.to_owned() })
    }

    fn places_served(&self) -> Places {
        self.places.iter().map(|place| (place.bridge.clone(), place.guest.clone())).collect()
    }

    fn tell_places(&self) {
        self.services.iter().for_each(|services| services.set_places(self.places_served()));
    }

    fn on_bridges(&mut self, request: &Request<'_>, endpoints: &[Endpoint]) -> Result<(), NetworkError> {
        let missing = permission::missing();
        if !missing.is_empty() {
            return Err(NetworkError::NotPermitted { missing: missing.join(" and ") });
        }
        // Nothing was made yet that would have to be removed.
        self.claims = claim::claim_all(&ports(request))?;
        self.published = self.claims.iter().map(|claim| claim.published).collect();
        self.egress = match &request.spec.egress {
            None => None,
            Some(rules) => {
                let listener = denials::Listener::open().map_err(host("listen for denied packets"))?;
                let log_group = listener.group();
                self.denials = Some(listener);
                Some(Egress { rules: rules.clone(), log_group })
            }
        };
        let _lock = self.networks.lock()?;
        for (index, endpoint) in endpoints.iter().take(MAX_NETWORKS).enumerate() {
            let plugged = self.plug_in(request, index, endpoint);
            if let Err(error) = plugged {
                self.leave();
                return Err(error);
            }
        }
        self.plan.resolver = !serves_names(request);
        self.plan.resolv_conf = resolver::resolv_conf(&request.spec.dns, self.plan.resolver);
        self.name_the_gateway();
        Ok(())
    }

    /// The lock is held.
    fn plug_in(
        &mut self,
        request: &Request<'_>,
        index: usize,
        endpoint: &Endpoint,
    ) -> Result<(), NetworkError> {
        let bridge = self.networks.bring_up(&endpoint.network)?;
        let lease = bridge.lease(endpoint)?;
        let settings = &bridge.settings;
        let mut aliases = endpoint.aliases.clone();
        if request.hostname != request.id.as_str() {
            aliases.push(request.hostname.to_owned());
        }
        let guest = Guest {
            container: request.id.to_string(),
            name: request.name.to_owned(),
            aliases,
            tap: tap_name(request.id, index),
            mac: endpoint.mac.unwrap_or_else(|| mac_of(lease.ipv4)),
            ipv4: lease.ipv4,
            ipv6: settings.subnet6.map(|subnet| subnet.host(lease.number)),
            // One network is enough to be found by the host.
            ports: if index == 0 { self.published.clone() } else { Vec::new() },
            egress: self.egress.clone(),
        };
        let leads_out =
            !settings.internal && self.plan.interfaces.iter().all(|other| other.gateway_v4.is_none());
        self.plan.interfaces.push(InterfacePlan {
            mac: guest.mac.0,
            ipv4: Some((guest.ipv4, settings.subnet.prefix())),
            gateway_v4: leads_out.then_some(settings.gateway),
            ipv6: guest.ipv6.zip(settings.subnet6).map(|(address, subnet)| (address, subnet.prefix())),
            gateway_v6: bridge.gateway6().filter(|_| leads_out).map(|(address, _)| address),
            mtu: MTU,
        });
        let Mac(mac) = guest.mac;
        let tap = match &self.namespace {
            None => bridge.plug_in(&guest, &lease, tap::create).map(Some),
            Some(namespace) => {
                bridge.plug_in(&guest, &lease, |name| namespace.pair(name, index)).map(|()| None)
            }
        };
        // Also where it failed half-way: leaving removes what is there.
        self.places.push(Place { index, bridge, guest, lease: Some(lease) });
        self.interfaces.extend(tap?.map(|tap| Interface::tap(tap, mac)));
        Ok(())
    }

    fn in_user_mode(&mut self, request: &Request<'_>) -> Result<(), NetworkError> {
        let claims = claim::claim_all(&ports(request))?;
        self.published = claims.iter().map(|claim| claim.published).collect();
        // TCP goes through the agent: passt before its version of April 2023 does not complete the handshake of a
        // connection to the guest until the client has sent something, and the client may wait for the server to.
        let (tcp, udp): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claim.published.transport == Transport::Tcp);
        self.plan.forward = !tcp.is_empty();
        self.claims = tcp;
        let (passt, interface, plan) = Passt::start()?;
        self.plan.interfaces.push(plan);
        self.plan.resolver = !serves_names(request);
        self.plan.resolv_conf = resolver::resolv_conf(&request.spec.dns, self.plan.resolver);
        let filter = request.spec.egress.clone().map(Filter::new);
        let datagrams = (!udp.is_empty()).then(|| Datagrams::new(udp, user::GATEWAY, user::GUEST));
        let interface = if filter.is_some() || datagrams.is_some() {
            self.relayed(interface, filter, datagrams)?
        } else {
            interface
        };
        self.interfaces.push(interface);
        self.passt = Some(passt);
        self.name_the_gateway();
        Ok(())
    }

    /// The machine's end of a wire that leads through a relay to `interface`.
    fn relayed(
        &mut self,
        interface: Interface,
        filter: Option<Filter>,
        datagrams: Option<Datagrams>,
    ) -> Result<Interface, NetworkError> {
        let (ours, machine) = UnixStream::pair().map_err(host("make a socket pair for the relay"))?;
        self.relay = Some(Relay::new(ours.into(), interface.fd, filter, datagrams));
        Ok(Interface::stream(machine.into(), interface.mac))
    }

    fn name_the_gateway(&mut self) {
        let gateway = self.plan.interfaces.iter().find_map(|interface| interface.gateway_v4).map(IpAddr::V4);
        for (address, _) in self.plan.extra_hosts.iter_mut().filter(|(address, _)| address == HOST_GATEWAY) {
            *address = gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
        }
        self.plan.extra_hosts.retain(|(address, _)| !address.is_empty());
    }

    /// The lock is held.
    fn leave(&mut self) {
        self.leave_from(0);
    }

    /// Leaves the networks from the `first` on. The lock is held.
    fn leave_from(&mut self, first: usize) {
        self.interfaces.clear();
        self.plan.interfaces.truncate(first);
        for mut place in self.places.drain(first..) {
            if self.namespace.is_some() {
                // Gone with the namespace anyway, but maybe a moment too late.
                let _ = links::remove(&place.guest.tap);
            }
            if let Some(lease) = place.lease.take() {
                place.bridge.leave(lease);
            }
        }
        self.networks.remove_unused();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.services = None;
        self.passt = None;
        self.relay = None;
        if self.places.is_empty() {
            return;
        }
        let networks = self.networks.clone();
        if let Ok(_lock) = networks.lock() {
            self.leave();
        }
    }
}

impl Interface {
    /// An interface behind a TAP.
    pub fn tap(fd: OwnedFd, mac: [u8; 6]) -> Self {
        Self { fd, backend: NetBackend::Tap, mac }
    }

    /// An interface behind a stream socket.
    pub fn stream(fd: OwnedFd, mac: [u8; 6]) -> Self {
        Self { fd, backend: NetBackend::Stream, mac }
    }

    /// For the machine.
    pub fn config(&self) -> NetConfig {
        NetConfig {
            fd: self.fd.as_raw_fd(),
            backend: self.backend,
            mac: self.mac,
            limits: Default::default(),
            mtu: None,
            service: None,
        }
    }
}

/// The name of interface `index` in the machine.
fn device_name(index: usize) -> String {
    format!("eth{index}")
}

/// What the user said about names counts without a network too, as in Docker.
fn names_only(spec: &NetworkSpec) -> NetworkPlan {
    NetworkPlan {
        interfaces: Vec::new(),
        resolv_conf: spec.dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect(),
        extra_hosts: spec.extra_hosts.clone(),
        resolver: false,
        forward: false,
    }
}

/// A container with a name server of its own needs that port for itself.
fn serves_names(request: &Request<'_>) -> bool {
    request.spec.exposed.iter().any(|(port, _)| *port == DNS_PORT)
        || request.spec.publish.iter().any(|port| port.guest_port == DNS_PORT)
}

/// Everything to publish: what `-p` says, and with `-P` what the image exposes beside that.
fn ports(request: &Request<'_>) -> Vec<Publish> {
    let mut ports = request.spec.publish.clone();
    if request.spec.publish_all {
        let named = |port: u16, transport| {
            request.spec.publish.iter().any(|other| (other.guest_port, other.transport) == (port, transport))
        };
        let more = request.spec.exposed.iter().filter(|(port, transport)| !named(*port, *transport));
        ports.extend(more.map(|&(guest_port, transport)| Publish {
            host_ip: None,
            host_port: None,
            guest_port,
            transport,
        }));
    }
    ports.truncate(MAX_PUBLISHED);
    ports
}

#[cfg(test)]
mod tests {
    use super::super::port;
    use super::*;

    #[test]
    fn names_count_without_a_network_too() {
        let spec = NetworkSpec {
            dns: super::super::spec::DnsSpec {
                servers: vec!["192.0.2.53".parse().unwrap()],
                ..Default::default()
            },
            extra_hosts: vec![("192.0.2.7".into(), "db".into())],
            ..NetworkSpec::default()
        };
        let plan = names_only(&spec);
        assert_eq!((plan.interfaces.len(), plan.resolv_conf.as_str()), (0, "nameserver 192.0.2.53\n"));
        assert_eq!(plan.extra_hosts, [("192.0.2.7".to_owned(), "db".to_owned())]);
    }

    #[test]
    fn exposed_ports_are_published_once() {
        let spec = NetworkSpec {
            publish: port::parse("8080:80").unwrap(),
            publish_all: true,
            ..NetworkSpec::default()
        };
        let id = ContainerId::random();
        let spec = NetworkSpec { exposed: vec![(80, Transport::Tcp), (53, Transport::Udp)], ..spec };
        let request = Request { id: &id, name: "n", hostname: "h", spec: &spec };
        let found: Vec<_> = ports(&request).iter().map(|port| (port.guest_port, port.host_port)).collect();
        assert_eq!(found, [(80, Some(8080)), (53, None)]);
        assert!(serves_names(&request));
        let spec = NetworkSpec { exposed: vec![(80, Transport::Tcp)], ..spec.clone() };
        assert!(!serves_names(&Request { spec: &spec, ..request }));
    }
}
