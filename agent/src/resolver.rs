//! Questions for names: taken on 127.0.0.11, port 53, by UDP and TCP, and passed to the host as they are.
//!
//! ```text
//! UDP: question ─► a connection to the host for it alone ─► answer ─► connection closed
//! TCP: connection ─► a connection to the host, spliced
//! ```
//!
//! Nothing is understood here, so nothing can be misunderstood. The sockets are part of a template; a container with a
//! name server of its own has them closed.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{DNS_DATAGRAM_PORT, DNS_STREAM_PORT};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use crate::failure::{Context, Failure};
use crate::splice::{Next, Splice};

/// Where resolv.conf points, as Docker's does.
const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);
/// Questions and connections at once; for a new one the oldest is given up (stops a process from collecting them).
const MAX_EXCHANGES: usize = 64;
/// Questions taken at once before others have their turn.
const MAX_TURN: usize = 16;
/// Longest question by UDP; a longer one is none.
const MAX_QUERY: usize = 4096;
/// Longest answer behind its length.
const MAX_ANSWER: usize = 2 + 65_535;
/// Bytes of an answer that are read at once.
const BUFFER: usize = 4096;

/// Begins to connect to a port of the host; never waits.
pub type Connect = Box<dyn Fn(u32) -> Result<OwnedFd, Errno>>;

/// Takes questions.
pub struct Resolver {
    connect: Connect,
    udp: UdpSocket,
    tcp: TcpListener,
    exchanges: Vec<Exchange>,
}

/// One question, or one connection.
enum Exchange {
    Datagram(Datagram),
    Stream(Splice<TcpStream, OwnedFd>),
}

struct Datagram {
    client: SocketAddr,
    host: OwnedFd,
    /// What the host has not got yet of the question.
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Resolver {
    /// Opens the sockets in this thread's network; `lo` is up.
    pub fn open(connect: Connect) -> Result<Self, Failure> {
        let what = "take questions for names on 127.0.0.11";
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let udp =
            socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::UDP)).during(what)?;
        // A process of the container may bind port 53 of all addresses if it says so too.
        sockopt::set_socket_reuseaddr(&udp, true).during(what)?;
        bind(&udp, &ADDRESS).during(what)?;
        let tcp = TcpListener::bind(ADDRESS).during(what)?;
        tcp.set_nonblocking(true).during(what)?;
        Ok(Self { connect, udp: udp.into(), tcp, exchanges: Vec::new() })
    }

    /// What to poll for; [`Resolver::serve`] takes the answers in the same order.
    pub fn interest(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interest = vec![(self.udp.as_fd(), PollFlags::IN), (self.tcp.as_fd(), PollFlags::IN)];
        for exchange in &self.exchanges {
            interest.extend(exchange.interest());
        }
        interest
    }

    /// Does what is ready.
    pub fn serve(&mut self, ready: &mut impl Iterator<Item = PollFlags>) {
        let mut is_ready = || ready.next().is_some_and(|flags| !flags.is_empty());
        let (udp, tcp) = (is_ready(), is_ready());
        let socket = &self.udp;
        self.exchanges.retain_mut(|exchange| {
            // Both are asked in any case: the iterator has an answer for each.
            let (first, second) = (is_ready(), is_ready());
            !(first || second) || exchange.go_on(socket) == Next::Wait
        });
        if udp {
            self.take_questions();
        }
        if tcp {
            self.take_connections();
        }
    }

    fn take_questions(&mut self) {
        let mut buffer = [0u8; MAX_QUERY + 1];
        for _ in 0..MAX_TURN {
            let Ok((count, client)) = self.udp.recv_from(&mut buffer) else { return };
            let Some(query) = buffer.get(..count).filter(|query| query.len() <= MAX_QUERY) else { continue };
            let Ok(host) = (self.connect)(DNS_DATAGRAM_PORT) else { return };
            let length = u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes();
            let question = [&length, query].concat();
            self.begin(Exchange::Datagram(Datagram { client, host, question, answer: Vec::new() }));
        }
    }

    fn take_connections(&mut self) {
        for _ in 0..MAX_TURN {
            let Ok((client, _)) = self.tcp.accept() else { return };
            let host = client.set_nonblocking(true).ok().and_then(|()| (self.connect)(DNS_STREAM_PORT).ok());
            if let Some(splice) = host.and_then(|host| Splice::new(client, host).ok()) {
                self.begin(Exchange::Stream(splice));
            }
        }
    }

    fn begin(&mut self, exchange: Exchange) {
        if self.exchanges.len() >= MAX_EXCHANGES {
            self.exchanges.remove(0);
        }
        self.exchanges.push(exchange);
    }
}

impl Exchange {
    /// Two descriptors, whatever is polled for on them.
    fn interest(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        match self {
            Self::Datagram(exchange) => {
                let flags = if exchange.question.is_empty() { PollFlags::IN } else { PollFlags::OUT };
                // The second place is for a stream's other end.
                [(exchange.host.as_fd(), flags), (exchange.host.as_fd(), PollFlags::empty())]
            }
            Self::Stream(splice) => splice.interest(),
        }
    }

    fn go_on(&mut self, udp: &UdpSocket) -> Next {
        let next = match self {
            Self::Datagram(exchange) => exchange.go_on(udp),
            Self::Stream(splice) => splice.go_on(),
        };
        match next {
            Ok(next) => next,
            Err(Errno::AGAIN | Errno::INTR) => Next::Wait,
            // The connection to the host is still being made, or will never be.
            Err(Errno::NOTCONN) if matches!(sockopt::socket_error(self.host()), Ok(Ok(()))) => Next::Wait,
            Err(_) => Next::Over,
        }
    }

    fn host(&self) -> BorrowedFd<'_> {
        match self {
            Self::Datagram(exchange) => exchange.host.as_fd(),
            Self::Stream(splice) => splice.other(),
        }
    }
}

impl Datagram {
    fn go_on(&mut self, udp: &UdpSocket) -> Result<Next, Errno> {
        while !self.question.is_empty() {
            let count = rustix::io::write(&self.host, &self.question)?;
            self.question.drain(..count);
        }
        loop {
            let mut buffer = [0u8; BUFFER];
            let count = rustix::io::read(&self.host, &mut buffer[..])?;
            self.answer.extend(buffer.get(..count).unwrap_or_default());
            let whole = self.answer.split_first_chunk::<2>();
            let answer =
                whole.and_then(|(length, rest)| rest.get(..usize::from(u16::from_be_bytes(*length))));
            if let Some(answer) = answer {
                // Whoever asked may be gone.
                let _ = udp.send_to(answer, self.client);
                return Ok(Next::Over);
            }
            if count == 0 || self.answer.len() > MAX_ANSWER {
                return Ok(Next::Over);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn datagram() -> (Datagram, UnixStream, UdpSocket, UdpSocket) {
        let (host, other) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        let address = client.local_addr().unwrap();
        let question = vec![0, 3, b'a', b's', b'k'];
        (Datagram { client: address, host: host.into(), question, answer: Vec::new() }, other, server, client)
    }

    #[test]
    fn an_answer_is_given_when_it_is_whole() {
        use std::io::{Read as _, Write as _};
        let (mut datagram, mut host, server, client) = datagram();
        assert_eq!(datagram.go_on(&server).err(), Some(Errno::AGAIN));
        let mut question = [0; 5];
        host.read_exact(&mut question).unwrap();
        assert_eq!(&question, b"\0\x03ask");
        host.write_all(b"\0\x05ans").unwrap();
        assert_eq!(datagram.go_on(&server).err(), Some(Errno::AGAIN));
        host.write_all(b"wer").unwrap();
        assert!(datagram.go_on(&server) == Ok(Next::Over));
        let mut buffer = [0; 16];
        assert_eq!(client.recv(&mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"answe");
    }

    #[test]
    fn a_host_that_hangs_up_ends_it() {
        let (mut datagram, host, server, _client) = datagram();
        drop(host);
        assert!(!matches!(datagram.go_on(&server), Ok(Next::Wait) | Err(Errno::AGAIN)));
    }
}
