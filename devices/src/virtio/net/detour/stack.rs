//! TCP for a service: frames in, frames out, no clock that anybody waits for.
//!
//! Everything happens when the guest sends a frame or takes one: the wire between loses nothing, so no timer is
//! needed. Bounds: connections (the oldest gives way), bytes of a request, frames that wait.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Timestamp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};

/// The service's side of the wire; Firecracker's.
const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Where it listens.
const PORT: u16 = 80;
/// Connections at once. Stops a guest from growing the VMM.
const CONNECTIONS: usize = 8;
/// Bytes of a request. A longer one ends its connection.
const MAX_REQUEST: usize = 4096;
/// Bytes under way to the guest, each connection.
const SEND_BUFFER: usize = 8192;
/// Frames that wait for the guest's buffers; more stay with their connections.
const MAX_FRAMES: usize = 16;
/// Largest frame: Ethernet's.
const MTU: usize = 1514;

/// The service's end of TCP.
pub struct Stack {
    begin: Instant,
    interface: Interface,
    queues: Queues,
    sockets: SocketSet<'static>,
    /// The oldest first.
    connections: VecDeque<Connection>,
}

struct Connection {
    socket: SocketHandle,
    request: Vec<u8>,
    /// What is left of the answer, once there is one.
    answer: Option<VecDeque<u8>>,
}

impl Stack {
    /// The end with this address, of any network.
    pub fn new(address: Ipv4Addr) -> Self {
        let mut queues = Queues::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut queues, Timestamp::ZERO);
        // Every guest is a neighbour, whatever its network.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 0)));
        });
        let sockets = SocketSet::new(Vec::new());
        Self { begin: Instant::now(), interface, queues, sockets, connections: VecDeque::new() }
    }

    /// Frames wait for the guest.
    pub fn has_frames(&self) -> bool {
        !self.queues.output.is_empty()
    }

    /// Takes a frame of the guest; `answer` is asked about what its connection has carried so far.
    pub fn put_frame(&mut self, frame: Vec<u8>, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        self.listen();
        self.queues.input = Some(frame);
        self.work(answer);
    }

    /// The next frame for the guest.
    pub fn take_frame(&mut self, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let frame = self.queues.output.pop_front()?;
        if self.queues.output.is_empty() {
            self.work(answer);
        }
        Some(frame)
    }

    /// Sees to it that one connection waits for a client.
    fn listen(&mut self) {
        let sockets = &self.sockets;
        let listens =
            |connection: &Connection| sockets.get::<tcp::Socket<'_>>(connection.socket).is_listening();
        if self.connections.iter().any(listens) {
            return;
        }
        if self.connections.len() >= CONNECTIONS
            && let Some(oldest) = self.connections.pop_front()
        {
            // What its client sends from now on is reset.
            self.sockets.remove(oldest.socket);
        }
        let buffer = |len| tcp::SocketBuffer::new(vec![0; len]);
        let mut socket = tcp::Socket::new(buffer(MAX_REQUEST), buffer(SEND_BUFFER));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        // Fails only for port 0 and for a socket that is open.
        let _ = socket.listen(PORT);
        let socket = self.sockets.add(socket);
        self.connections.push_back(Connection { socket, request: Vec::new(), answer: None });
    }

    fn poll(&mut self) {
        let now = i64::try_from(self.begin.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.interface.poll(Timestamp::from_millis(now), &mut self.queues, &mut self.sockets);
    }

    /// Lets frames through and connections go on until nothing moves any more.
    fn work(&mut self, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        // Each turn takes a frame, bytes of a request or bytes of an answer; the bound is for what nobody thought of.
        for _ in 0..MAX_FRAMES {
            self.poll();
            let mut moved = false;
            for connection in &mut self.connections {
                moved |= connection.go_on(self.sockets.get_mut(connection.socket), &answer);
            }
            if !moved {
                break;
            }
        }
        self.poll();
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let open = sockets.get::<tcp::Socket<'_>>(connection.socket).is_open();
            if !open {
                sockets.remove(connection.socket);
            }
            open
        });
    }
}

impl Connection {
    /// Takes what came and gives what fits; whether anything did.
    fn go_on(&mut self, socket: &mut tcp::Socket<'_>, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) -> bool {
        let (state, mut moved) = (socket.state(), false);
        if self.answer.is_none() && socket.can_recv() {
            let request = &mut self.request;
            let taken = socket.recv(|bytes| {
                request.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            moved = taken.is_ok();
            self.answer = answer(&self.request).map(VecDeque::from);
            if self.answer.is_none() && self.request.len() >= MAX_REQUEST {
                socket.abort();
            }
        }
        if let Some(left) = &mut self.answer {
            while !left.is_empty() && socket.can_send() {
                let (piece, _) = left.as_slices();
                let Ok(sent) = socket.send_slice(piece) else { break };
                left.drain(..sent);
                moved |= sent > 0;
            }
            if left.is_empty() {
                // What was sent is delivered before; a second call changes nothing.
                socket.close();
            }
        } else if socket.state() == tcp::State::CloseWait {
            // The client said half a request and no more comes.
            socket.close();
        }
        moved || socket.state() != state
    }
}

/// What the interface sees of the wire.
#[derive(Default)]
struct Queues {
    input: Option<Vec<u8>>,
    output: VecDeque<Vec<u8>>,
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Timestamp) -> Option<(Received, Room<'_>)> {
        // An answer may go beyond the limit by one frame, so that what the guest sends is always looked at.
        let frame = self.input.take()?;
        Some((Received(frame), Room(&mut self.output)))
    }

    fn transmit(&mut self, _: Timestamp) -> Option<Room<'_>> {
        (self.output.len() < MAX_FRAMES).then_some(Room(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        // A guest leaves its checksums to the device that it has.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

/// Room for a frame.
struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        // Nothing but answers to the guest's frames comes without room: a bound for them too.
        if self.0.len() < 2 * MAX_FRAMES {
            self.0.push_back(frame);
        }
        result
    }
}
