//! All connections of one guest and the sockets of the host behind them.
//!
//! Host to guest: a client of the listening socket writes `CONNECT <port>\n`; the guest gets a REQUEST.
//! Guest to host: a REQUEST for port P is a connect to `<uds_path>_<P>`.
//! Who has something for the guest waits in a queue and gets one packet per turn, so that no connection
//! starves another.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::clients::{Clients, LISTENER};
use super::connection::{Connection, Fate, Ports};
use super::header::{HEADER_SIZE, HOST_CID, Header, Op, TYPE_STREAM};
use super::poller::{Poller, Tokens};
use super::socket;
use crate::virtio::guest_buffers::GuestBuffers;

/// Connections at a time, of both directions. Stops a guest from using up descriptors and memory: each may
/// hold [`super::credit::RECEIVE_BUFFER`] bytes, 64 MiB together.
pub const MAX_CONNECTIONS: usize = 512;

/// RST packets that wait for a buffer of the guest. A guest that provokes more of them without taking them
/// loses the rest.
pub const MAX_RESETS: usize = 1024;

/// Host ports for clients count up from here, as in Firecracker, far from what a guest asks for.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The connections of one guest.
pub struct Hub {
    guest_cid: u64,
    poller: Poller,
    tokens: Tokens,
    clients: Clients,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// Tokens that may have a packet, each at most once.
    turns: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_host_port: u32,
}

impl Hub {
    /// Listens on `uds_path` for the guest `guest_cid`.
    pub fn bind(guest_cid: u64, uds_path: &Path) -> io::Result<Self> {
        let poller = Poller::new()?;
        let clients = Clients::bind(uds_path, &poller)?;
        Ok(Self {
            guest_cid,
            poller,
            tokens: Tokens::default(),
            clients,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
        })
    }

    /// The one descriptor to poll, for reading.
    pub fn raw_fd(&self) -> RawFd {
        self.poller.raw_fd()
    }

    /// The host port that the next client gets.
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Goes on counting host ports where another hub stopped, so that ports of connections that the guest
    /// still remembers are not used at once.
    pub fn set_next_host_port(&mut self, port: u32) {
        self.next_host_port = port.max(FIRST_HOST_PORT);
    }

    /// What the host last failed at, once.
    pub fn take_failure(&mut self) -> Option<String> {
        self.clients.take_failure()
    }

    /// The guest's driver was reset: what it knew of is dropped; clients that wait for it stay.
    pub fn forget_guest(&mut self) {
        self.resets.clear();
        let tokens: Vec<u64> = self.connections.keys().copied().collect();
        for token in tokens {
            self.update(token, Connection::on_guest_reset);
        }
    }

    /// Serves the host's sockets.
    pub fn poll(&mut self) {
        self.clients.resume(&self.poller);
        // Fails only on a signal; the epoll descriptor stays readable then.
        for (token, events) in self.poller.ready().unwrap_or_default() {
            if token == LISTENER {
                self.clients.accept(&self.poller, &mut self.tokens);
            } else if self.clients.contains(token) {
                if let Some((stream, port)) = self.clients.advance(token) {
                    self.connect_to_guest(token, stream, port);
                }
            } else {
                self.update(token, |connection| connection.on_socket(events));
            }
        }
    }

    /// Takes a packet of the guest; `packet` has the header and at least `header.len` bytes after it.
    pub fn on_packet(&mut self, header: &Header, packet: &GuestBuffers<'_>) {
        if header.src_cid != self.guest_cid {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        match self.by_ports.get(&ports) {
            Some(&token) => self.update(token, |connection| connection.on_packet(header, packet)),
            None if header.op == Op::Request as u16 => self.connect_to_host(ports, header),
            None => self.refuse(header),
        }
    }

    /// Makes the next packet for the guest in `target`, which holds at least a header, and returns its
    /// length. `None` when there is nothing to say.
    pub fn next_packet(&mut self, target: &GuestBuffers<'_>) -> Option<usize> {
        if let Some(reset) = self.resets.pop_front() {
            return target.copy_from(0, &reset.to_bytes()).then_some(HEADER_SIZE);
        }
        for _ in 0..self.turns.len() {
            let token = self.turns.pop_front()?;
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            let packet = connection.next_packet(self.guest_cid, target);
            if connection.has_packet() {
                self.turns.push_back(token);
            }
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// Whether the guest should be given a packet when it has a buffer.
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Number of connections, for tests.
    #[cfg(test)]
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Number of incomplete handshakes, for tests.
    #[cfg(test)]
    pub fn handshake_count(&self) -> usize {
        self.clients.len()
    }

    fn connect_to_guest(&mut self, token: u64, stream: UnixStream, guest: u32) {
        if !self.make_room() {
            return;
        }
        let Some(host) = self.take_host_port(guest) else {
            return;
        };
        let connection = Connection::from_host(Ports { host, guest }, stream);
        // The descriptor is in the set already; this has what came with the line told again.
        if self.poller.modify(connection.raw_fd(), connection.interest(), token).is_ok() {
            self.insert(token, connection);
        }
    }

    fn connect_to_host(&mut self, ports: Ports, request: &Header) {
        let path = self.clients.port_path(ports.host);
        if !self.make_room() {
            return self.refuse(request);
        }
        let Ok(stream) = socket::connect(&path) else {
            return self.refuse(request);
        };
        let connection = Connection::from_guest(ports, stream, request);
        let token = self.tokens.next();
        match self.poller.add(connection.raw_fd(), connection.interest(), token) {
            Ok(()) => self.insert(token, connection),
            Err(_) => self.refuse(request),
        }
    }

    /// Queues an RST for a packet that belongs to no connection. An RST is never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Rst as u16 {
            self.push_reset(header.rst_reply());
        }
    }

    fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// Whether there is room for another connection; one whose host side is over makes place.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let lingering = self
            .connections
            .iter()
            .find(|(_, connection)| connection.is_lingering())
            .map(|(token, _)| *token);
        match lingering {
            Some(token) => {
                self.end(token);
                true
            }
            None => false,
        }
    }

    fn insert(&mut self, token: u64, connection: Connection) {
        self.by_ports.insert(connection.ports(), token);
        self.connections.insert(token, connection);
        self.turns.push_back(token);
    }

    /// Lets `event` happen to a connection and does what follows from it.
    fn update(&mut self, token: u64, event: impl FnOnce(&mut Connection) -> Fate) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let had_packet = connection.has_packet();
        let interest = connection.interest();
        let fate = event(connection);
        if fate == Fate::Live && connection.has_packet() && !had_packet {
            self.turns.push_back(token);
        }
        let new_interest = connection.interest();
        let fd = connection.raw_fd();
        let unpolled = new_interest != interest && self.poller.modify(fd, new_interest, token).is_err();
        match fate {
            Fate::Live if unpolled => self.end(token),
            Fate::Live => {}
            Fate::Reset => self.end(token),
            Fate::Gone => self.remove(token),
            Fate::Drain => self.free_ports(token),
        }
    }

    /// Ends a connection that the guest believes in.
    fn end(&mut self, token: u64) {
        if let Some(ports) = self.connections.get(&token).map(Connection::ports) {
            self.push_reset(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind: TYPE_STREAM,
                op: Op::Rst as u16,
                ..Header::default()
            });
        }
        self.remove(token);
    }

    fn remove(&mut self, token: u64) {
        self.free_ports(token);
        self.connections.remove(&token);
        // Else a guest that takes no packets could make the queue grow by connecting again and again.
        self.turns.retain(|waiting| *waiting != token);
    }

    /// Takes a connection's ports out of the table, unless they name a newer one by now.
    fn free_ports(&mut self, token: u64) {
        if let Some(connection) = self.connections.get(&token)
            && self.by_ports.get(&connection.ports()) == Some(&token)
        {
            self.by_ports.remove(&connection.ports());
        }
    }

    /// A host port that is free for a connection to guest port `guest`.
    fn take_host_port(&mut self, guest: u32) -> Option<u32> {
        for _ in 0..=MAX_CONNECTIONS {
            let host = self.next_host_port;
            self.next_host_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return Some(host);
            }
        }
        None
    }
}
