//! The socket: clients, their connections, their requests in order, their answers.
//!
//! One thread, the caller's: [`Server::fd`] is readable when [`Server::take`] has something to do. A client has at
//! most one request under way; what it sends after that waits in the socket. Bounds: clients, bytes of a request,
//! the time that half a request or an answer that is not read may take.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::Mode;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::fault::Fault;
use crate::http::{self, HttpError, Parsed, Request, Response, Status};

/// Clients at once. Stops one from using up all descriptors.
const MAX_CLIENTS: usize = 16;
/// For so long half a request may be there without the other half, or an answer without being read. Stops slow
/// clients from holding a place for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// Read at once.
const CHUNK: usize = 4096;
/// Events taken from one wait; more stay for the next.
const EVENTS: usize = 32;

/// Token of the listening socket in epoll, and of the timer.
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("the API socket {} is in use: give another --api-sock", .0.display())]
    Alive(PathBuf),
    /// Something else is there.
    #[error("{} is there and is no socket: remove it or give another --api-sock", .0.display())]
    NoSocket(PathBuf),
    /// A system call failed.
    #[error("cannot listen on the API socket {}", path.display())]
    Io {
        /// Path of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A request, and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    /// The client.
    pub client: u64,
    /// What it sent.
    pub request: Request,
}

/// The API socket of one VMM.
#[derive(Debug)]
pub struct Server {
    epoll: OwnedFd,
    timer: OwnedFd,
    listener: UnixListener,
    max_body: usize,
    clients: HashMap<u64, Client>,
    next_client: u64,
    asked: VecDeque<Asked>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Its request is being worked on.
    asked: bool,
    /// The connection ends when the output is written.
    closing: bool,
    /// A `100 Continue` was sent for the request that begins the input.
    continued: bool,
    /// Since when half of something is there.
    since: Option<Instant>,
}

impl Server {
    /// Listens on `path`; a socket there that nobody listens on is replaced. Bodies have at most `max_body` bytes.
    /// Only the owner may connect, and root. Before the process has other threads: it sets the umask for a moment.
    pub fn listen(path: &Path, max_body: usize) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io { path: path.to_owned(), source };
        remove_stale(path)?;
        let old = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        rustix::process::umask(old);
        let listener = listener.map_err(io)?;
        let set_up = || -> io::Result<(OwnedFd, OwnedFd)> {
            listener.set_nonblocking(true)?;
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let (epoll, timer) = (
                epoll::create(epoll::CreateFlags::CLOEXEC)?,
                timerfd_create(TimerfdClockId::Monotonic, flags)?,
            );
            epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
            epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
            Ok((epoll, timer))
        };
        let (epoll, timer) = set_up().map_err(io)?;
        Ok(Server {
            epoll,
            timer,
            listener,
            max_body,
            clients: HashMap::new(),
            next_client: 0,
            asked: VecDeque::new(),
        })
    }

    /// Readable while there is something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Does what there is to do without waiting and gives the oldest request that is not answered yet. Call until
    /// `None`, and answer each.
    pub fn take(&mut self) -> Option<Asked> {
        if self.asked.is_empty() {
            self.turn();
        }
        self.asked.pop_front()
    }

    /// Sends `response` to `client`, who may be gone, and looks for its next request.
    pub fn answer(&mut self, client: u64, response: &Response) {
        let Some(connection) = self.clients.get_mut(&client) else { return };
        connection.asked = false;
        connection.send(response);
        self.serve(client);
    }

    /// For the end of the process: what is left of the answers gets `timeout` to be taken.
    pub fn flush(&mut self, timeout: Duration) {
        for client in self.clients.values_mut().filter(|client| !client.output.is_empty()) {
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(timeout));
            let _ = client.stream.write_all(&client.output);
        }
    }

    fn turn(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let timeout = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).is_err() {
            return;
        }
        for event in events {
            match event.data.u64() {
                LISTENER => self.accept(),
                TIMER => self.drop_the_slow(),
                client => self.serve(client),
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() >= MAX_CLIENTS {
                let message = "Too many open connections.".to_owned();
                let fault = Fault { status: Status::ServiceUnavailable, message };
                let _ = (&stream).write(&Response::from(fault).closing().to_bytes());
                continue;
            }
            let client = self.next_client;
            self.next_client += 1;
            let data = epoll::EventData::new_u64(client);
            if epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).is_ok() {
                self.clients.insert(client, Client::new(stream));
            }
        }
    }

    /// Goes on with a client until it waits for something.
    fn serve(&mut self, client: u64) {
        let Some(connection) = self.clients.get_mut(&client) else { return };
        let open = match connection.go_on(self.max_body) {
            Ok(Some(request)) => {
                self.asked.push_back(Asked { client, request });
                true
            }
            Ok(None) => true,
            Err(_) => false,
        };
        if !open {
            self.clients.remove(&client);
            return;
        }
        let data = epoll::EventData::new_u64(client);
        // Fails only where memory is short; the client then waits.
        let _ = epoll::modify(&self.epoll, &connection.stream, data, connection.interest());
        if connection.since.is_some() {
            self.set_timer();
        }
    }

    /// Sets the timer to the first end of patience.
    fn set_timer(&mut self) {
        let oldest = self.clients.values().filter_map(|client| client.since).min();
        let left = oldest.map(|since| PATIENCE.saturating_sub(since.elapsed()) + Duration::from_millis(1));
        // All zero turns it off.
        let left = left.unwrap_or(Duration::ZERO);
        let it_value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
    }

    fn drop_the_slow(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
        self.clients.retain(|_, client| client.since.is_none_or(|since| since.elapsed() < PATIENCE));
        self.set_timer();
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Client {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            asked: false,
            closing: false,
            continued: false,
            since: None,
        }
    }

    fn send(&mut self, response: &Response) {
        self.closing |= response.close;
        let response = if self.closing { &response.clone().closing() } else { response };
        self.output.extend(response.to_bytes());
    }

    /// Writes, reads and parses as far as possible without waiting; an error is the end of the connection.
    fn go_on(&mut self, max_body: usize) -> io::Result<Option<Request>> {
        loop {
            self.write()?;
            if !self.output.is_empty() || self.asked {
                return Ok(None);
            }
            if self.closing {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match http::parse(&self.input, max_body) {
                Ok(Parsed::Complete(request, len)) => {
                    self.input.drain(..len);
                    if self.input.is_empty() {
                        // An idle client costs no memory.
                        self.input = Vec::new();
                    }
                    self.asked = true;
                    self.closing = request.close;
                    self.continued = false;
                    self.since = None;
                    return Ok(Some(request));
                }
                Ok(Parsed::Partial { wants_continue: true }) if !self.continued => {
                    self.continued = true;
                    self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Ok(Parsed::Partial { .. }) if !self.read()? => return Ok(None),
                Ok(Parsed::Partial { .. }) => {}
                Err(error) => {
                    self.drain(&error);
                    self.send(&Response::from(&error));
                }
            }
        }
    }

    /// Takes some of what is there; false if that is nothing yet.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; CHUNK];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                self.since.get_or_insert_with(Instant::now);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Throws away what the socket holds of a body that is too large: closing a socket with unread bytes would make
    /// the client miss the answer.
    fn drain(&mut self, error: &HttpError) {
        if matches!(error, HttpError::Payload { .. }) {
            let mut buffer = [0; CHUNK];
            // At most what fits into a socket's buffers.
            for _ in 0..256 {
                match self.stream.read(&mut buffer) {
                    Ok(1..) => {}
                    _ => break,
                }
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.since.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        if self.input.is_empty() {
            self.since = None;
        }
        Ok(())
    }

    fn interest(&self) -> epoll::EventFlags {
        if !self.output.is_empty() {
            epoll::EventFlags::OUT
        } else if self.asked {
            epoll::EventFlags::empty()
        } else {
            epoll::EventFlags::IN
        }
    }
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |source| ListenError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::Alive(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    const GET: &[u8] = b"GET /one HTTP/1.1\r\n\r\n";

    struct Fixture {
        _base: tempfile::TempDir,
        path: PathBuf,
        server: Server,
    }

    fn fixture() -> Fixture {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("api.sock");
        let server = Server::listen(&path, 100).unwrap();
        Fixture { _base: base, path, server }
    }

    impl Fixture {
        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream
        }

        /// Answers `count` requests with their paths.
        fn answer(&mut self, count: usize) {
            let begin = Instant::now();
            let mut answered = 0;
            while answered < count {
                assert!(begin.elapsed() < Duration::from_secs(5), "{answered} of {count}");
                let timeout = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let _ = poll(&mut [PollFd::new(&self.server.fd(), PollFlags::IN)], Some(&timeout));
                while let Some(asked) = self.server.take() {
                    self.server.answer(asked.client, &Response::data(&asked.request.path));
                    answered += 1;
                }
            }
        }

        fn idle(&mut self) {
            assert!(self.server.take().is_none());
        }
    }

    fn text(mut stream: &UnixStream) -> String {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn a_connection_serves_request_after_request_pipelined_ones_in_order() {
        let mut fixture = fixture();
        let mut client = fixture.connect();
        client.write_all(GET).unwrap();
        fixture.answer(1);
        assert!(text(&client).ends_with("\"/one\""));
        client.write_all(b"GET /one HTTP/1.1\r\n\r\nGET /two HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        fixture.answer(2);
        let mut both = String::new();
        client.read_to_string(&mut both).unwrap();
        assert!(both.find("\"/one\"").unwrap() < both.find("\"/two\"").unwrap(), "{both}");
    }

    #[test]
    fn half_a_request_waits_for_its_other_half_and_disturbs_nobody() {
        let mut fixture = fixture();
        let (mut slow, mut quick) = (fixture.connect(), fixture.connect());
        slow.write_all(&GET[..9]).unwrap();
        fixture.idle();
        quick.write_all(GET).unwrap();
        fixture.answer(1);
        slow.write_all(&GET[9..]).unwrap();
        fixture.answer(1);
        assert!(text(&slow).starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn a_slow_client_loses_its_connection() {
        let mut fixture = fixture();
        let (mut slow, idle) = (fixture.connect(), fixture.connect());
        slow.write_all(&GET[..9]).unwrap();
        fixture.idle();
        fixture.idle();
        assert_eq!(fixture.server.clients.len(), 2);
        for client in fixture.server.clients.values_mut().filter(|client| client.since.is_some()) {
            client.since = Instant::now().checked_sub(PATIENCE);
        }
        fixture.server.drop_the_slow();
        assert_eq!(fixture.server.clients.len(), 1);
        assert_eq!(slow.read(&mut [0]).unwrap(), 0);
        drop(idle);
    }

    #[test]
    fn nonsense_and_bodies_that_are_too_large_end_the_connection_with_an_answer() {
        let mut fixture = fixture();
        for (sent, status) in [
            (&b"NONSENSE\r\n\r\n"[..], "HTTP/1.1 400"),
            (b"PUT / HTTP/1.1\r\nContent-Length: 101\r\n\r\nxxx", "HTTP/1.1 413"),
        ] {
            let mut client = fixture.connect();
            client.write_all(sent).unwrap();
            fixture.idle();
            fixture.idle();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with(status), "{answer}");
            let body = answer.split("\r\n\r\n").nth(1).unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["fault_message"].is_string());
        }
        assert!(fixture.server.clients.is_empty());
    }

    #[test]
    fn who_expects_a_continue_gets_one() {
        let mut fixture = fixture();
        let mut client = fixture.connect();
        client.write_all(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
        fixture.idle();
        fixture.idle();
        assert!(text(&client).starts_with("HTTP/1.1 100"));
        client.write_all(b"{}").unwrap();
        fixture.answer(1);
        assert!(text(&client).starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn one_client_too_many_is_told_so_and_a_place_is_free_again_afterwards() {
        let mut fixture = fixture();
        let clients: Vec<_> = (0..MAX_CLIENTS).map(|_| fixture.connect()).collect();
        fixture.idle();
        let extra = fixture.connect();
        fixture.idle();
        assert!(text(&extra).starts_with("HTTP/1.1 503"));
        drop(clients);
        fixture.idle();
        let mut client = fixture.connect();
        client.write_all(GET).unwrap();
        fixture.answer(1);
        assert!(text(&client).starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn a_client_that_is_gone_before_its_answer_is_forgotten() {
        let mut fixture = fixture();
        let mut client = fixture.connect();
        client.write_all(GET).unwrap();
        fixture.idle_until_asked(|asked, server| {
            drop(client);
            server.answer(asked.client, &Response::done());
        });
        fixture.idle();
        assert!(fixture.server.clients.is_empty());
    }

    impl Fixture {
        fn idle_until_asked(&mut self, act: impl FnOnce(Asked, &mut Server)) {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(5) {
                if let Some(asked) = self.server.take() {
                    return act(asked, &mut self.server);
                }
            }
            panic!("nothing was asked");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_or_a_file_is_not() {
        let Fixture { _base, path, server } = fixture();
        assert!(matches!(Server::listen(&path, 1), Err(ListenError::Alive(_))));
        drop(server);
        let server = Server::listen(&path, 1).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        drop(server);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Server::listen(&path, 1), Err(ListenError::NoSocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
