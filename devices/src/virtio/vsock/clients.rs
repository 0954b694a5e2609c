//! Host clients on their way to a connection: accepted, but their `CONNECT` line is not complete.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::EventSet;

use super::handshake::{Handshake, Progress};
use super::poller::{Poller, Tokens};
use super::socket::Listener;

/// Clients whose line is not complete. One more pushes out the oldest.
pub const MAX_HANDSHAKES: usize = 64;

/// Poll token of the listening socket.
pub const LISTENER: u64 = 0;

/// Clients accepted in one call.
const ACCEPTS_PER_CALL: usize = 16;

/// The listening socket and its unfinished clients.
pub struct Clients {
    listener: Listener,
    /// Accepting failed for want of descriptors and starts again at the next event.
    stalled: bool,
    failure: Option<String>,
    handshakes: BTreeMap<u64, Handshake>,
}

impl Clients {
    /// Listens on `path`.
    pub fn bind(path: &Path, poller: &Poller) -> io::Result<Self> {
        let listener = Listener::bind(path)?;
        poller.add(listener.as_raw_fd(), listener_events(), LISTENER)?;
        Ok(Self { listener, stalled: false, failure: None, handshakes: BTreeMap::new() })
    }

    /// Where a guest's connect to `port` goes.
    pub fn port_path(&self, port: u32) -> PathBuf {
        self.listener.port_path(port)
    }

    /// Whether `token` is that of an unfinished client.
    pub fn contains(&self, token: u64) -> bool {
        self.handshakes.contains_key(&token)
    }

    /// Number of unfinished clients, for tests.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.handshakes.len()
    }

    /// What accepting last failed at, once.
    pub fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Listens again if a lack of descriptors stopped it.
    pub fn resume(&mut self, poller: &Poller) {
        if self.stalled {
            self.arm(poller);
        }
    }

    /// The listening socket is ready.
    pub fn accept(&mut self, poller: &Poller, tokens: &mut Tokens) {
        for _ in 0..ACCEPTS_PER_CALL {
            match self.listener.accept() {
                Ok(stream) => self.start(stream, poller, tokens.next()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.failure = Some(format!("cannot accept a client: {error}"));
                    self.stalled = true;
                    return;
                }
            }
        }
        self.arm(poller);
    }

    /// The client `token` is ready. Once its line is complete, its stream and the port it wants are
    /// returned; the stream stays in `poller`.
    pub fn advance(&mut self, token: u64) -> Option<(UnixStream, u32)> {
        let mut handshake = self.handshakes.remove(&token)?;
        match handshake.advance() {
            Progress::Partial => {
                self.handshakes.insert(token, handshake);
                None
            }
            Progress::Connect(port) => Some((handshake.into_stream(), port)),
            Progress::Refused => None,
        }
    }

    fn start(&mut self, stream: UnixStream, poller: &Poller, token: u64) {
        while self.handshakes.len() >= MAX_HANDSHAKES {
            self.handshakes.pop_first();
        }
        let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if poller.add(stream.as_raw_fd(), events, token).is_ok() {
            self.handshakes.insert(token, Handshake::new(stream));
        }
    }

    fn arm(&mut self, poller: &Poller) {
        let armed = poller.modify(self.listener.as_raw_fd(), listener_events(), LISTENER);
        self.stalled = armed.is_err();
    }
}

/// One-shot: the listener is armed again after each round, so that a full descriptor table causes no spin.
fn listener_events() -> EventSet {
    EventSet::IN | EventSet::ONE_SHOT
}
