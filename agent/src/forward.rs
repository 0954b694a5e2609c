//! Published ports of a container whose network cannot be called from the host: a connection of the host on vsock
//! begins with the port, two bytes, big endian, and goes on as a connection to that port of `eth0`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::FORWARD_PORT;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt};

use crate::failure::Failure;
use crate::splice::{Next, Splice};
use crate::transport;

/// Connections at once; more wait in the kernel.
const MAX_CONNECTIONS: usize = 128;

/// Takes the host's connections.
pub struct Forwarder {
    listener: OwnedFd,
    /// Address of `eth0`.
    address: Ipv4Addr,
    connections: Vec<Connection>,
}

enum Connection {
    /// The host has not said the port yet, or not all of it.
    New(OwnedFd, Vec<u8>),
    Going(Splice<OwnedFd, OwnedFd>),
}

impl Forwarder {
    /// Listens; connections lead to `address`.
    pub fn open(address: Ipv4Addr) -> Result<Self, Failure> {
        Ok(Self { listener: transport::listen(FORWARD_PORT)?, address, connections: Vec::new() })
    }

    /// What to poll for; [`Forwarder::serve`] takes the answers in the same order.
    pub fn interest(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let room = self.connections.len() < MAX_CONNECTIONS;
        let mut interest =
            vec![(self.listener.as_fd(), if room { PollFlags::IN } else { PollFlags::empty() })];
        for connection in &self.connections {
            interest.extend(match connection {
                Connection::New(host, _) => {
                    [(host.as_fd(), PollFlags::IN), (host.as_fd(), PollFlags::empty())]
                }
                Connection::Going(splice) => splice.interest(),
            });
        }
        interest
    }

    /// Does what is ready.
    pub fn serve(&mut self, ready: &mut impl Iterator<Item = PollFlags>) {
        let mut is_ready = || ready.next().is_some_and(|flags| !flags.is_empty());
        let accepts = is_ready();
        let address = self.address;
        self.connections.retain_mut(|connection| {
            let (first, second) = (is_ready(), is_ready());
            !(first || second) || connection.go_on(address) == Next::Wait
        });
        while accepts && self.connections.len() < MAX_CONNECTIONS {
            let Ok(Some(host)) = transport::accept(&self.listener) else { return };
            self.connections.push(Connection::New(host, Vec::new()));
        }
    }
}

impl Connection {
    fn go_on(&mut self, address: Ipv4Addr) -> Next {
        let result = match self {
            Self::New(host, head) => match begin(host, head, address) {
                Ok(Some(splice)) => {
                    *self = Self::Going(splice);
                    return Next::Wait;
                }
                Ok(None) => Ok(Next::Wait),
                Err(error) => Err(error),
            },
            Self::Going(splice) => match splice.go_on() {
                // The connection to the port is still being made, or will never be.
                Err(Errno::NOTCONN) if matches!(sockopt::socket_error(splice.other()), Ok(Ok(()))) => {
                    Ok(Next::Wait)
                }
                result => result,
            },
        };
        match result {
            Ok(next) => next,
            Err(Errno::AGAIN | Errno::INTR) => Next::Wait,
            Err(_) => Next::Over,
        }
    }
}

/// Reads the rest of the port; with it, connects.
fn begin(
    host: &OwnedFd,
    head: &mut Vec<u8>,
    address: Ipv4Addr,
) -> Result<Option<Splice<OwnedFd, OwnedFd>>, Errno> {
    let mut buffer = [0u8; 2];
    // Not one byte more than the port: the rest is the connection's.
    let filled = head.len();
    match rustix::io::read(host, buffer.get_mut(filled..).unwrap_or_default())? {
        0 => return Err(Errno::CONNRESET),
        count => head.extend(buffer.iter().skip(filled).take(count)),
    }
    let Some(port) = head.first_chunk::<2>() else { return Ok(None) };
    let target = SocketAddrV4::new(address, u16::from_be_bytes(*port));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Splice::new(rustix::io::fcntl_dupfd_cloexec(host, 3)?, socket).map(Some)
}
