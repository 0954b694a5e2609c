//! The listening end, a subscriber of the event loop. It parses; the owner of the VM acts and answers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::held;
use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vmm_sys_util::epoll::EventSet;

use super::{Answer, Refusal, RefusalKind, Request};
use crate::report::{Report, Reporter};
use crate::vm::SnapshotFiles;

/// Longest line. Stops a client from filling memory.
pub(super) const MAX_LINE: usize = 16 << 10;
/// Clients at once. Stops one from using up all descriptors.
const MAX_CLIENTS: usize = 16;

/// Most files that come with a request: a snapshot's memory and state, and the state of its base.
pub(super) const FILES: usize = 3;

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the control socket {}", path.display())]
pub struct ServerError {
    path: PathBuf,
    source: io::Error,
}

/// A request and the client who waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is asked for.
    pub request: Request,
    /// Came with it.
    descriptors: Vec<OwnedFd>,
    client: UnixStream,
}

impl Asked {
    /// Nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        let mut byte = 0_u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer has the one byte that is asked for, and the descriptor is open.
        unsafe { libc::recv(self.client.as_raw_fd(), (&raw mut byte).cast(), 1, flags) == 0 }
    }

    /// The descriptor that came with the request.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop()
    }

    /// The files of a snapshot, memory and state, where its asker made them, and the state of its base.
    pub fn take_files(&mut self) -> (Option<SnapshotFiles>, Option<File>) {
        let mut files = std::mem::take(&mut self.descriptors).into_iter().map(File::from);
        match (files.next(), files.next()) {
            (Some(memory), Some(state)) => (Some(Arc::new([memory, state])), files.next()),
            _ => (None, None),
        }
    }

    /// Answers. A client that does not read loses its connection, nothing else.
    pub fn answer(&self, answer: &Answer) {
        reply(&self.client, answer);
    }
}

/// The control socket of one VM.
pub struct Server {
    listener: UnixListener,
    reporter: Reporter,
    clients: HashMap<RawFd, Client>,
}

/// A connection and the beginning of its next line.
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// What reading from a client came to.
enum Progress {
    Partial,
    Line,
    Gone,
}

impl Server {
    /// Listens on `path`, which must not exist. Requests go to the owner of the VM through `reporter`.
    pub fn listen(path: &Path, reporter: Reporter) -> Result<Self, ServerError> {
        let listen = || {
            let listener = match held::take(path) {
                Some(held) => UnixListener::from(held?),
                None => UnixListener::bind(path)?,
            };
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| ServerError { path: path.to_owned(), source })?;
        Ok(Server { listener, reporter, clients: HashMap::new() })
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while let Ok((stream, _)) = self.listener.accept() {
            // One too many is closed at once.
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let fd = stream.as_raw_fd();
            if ops.add(Events::new_raw(fd, EventSet::IN)).is_ok() {
                self.clients.insert(fd, Client { stream, line: Vec::new(), descriptors: Vec::new() });
            }
        }
    }

    fn serve(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        match client.read() {
            Progress::Partial => {}
            Progress::Line => self.ask(fd),
            Progress::Gone => {
                let _ = ops.remove(Events::empty_raw(fd));
                self.clients.remove(&fd);
            }
        }
    }

    /// Hands the complete line of a client on.
    fn ask(&mut self, fd: RawFd) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let line = std::mem::take(&mut client.line);
        let descriptors = std::mem::take(&mut client.descriptors);
        let refusal = match (serde_json::from_slice(&line), client.stream.try_clone()) {
            (Ok(request), Ok(client)) => {
                return self.reporter.send(Report::Asked(Asked { request, descriptors, client }));
            }
            (Err(error), _) => (RefusalKind::Request, format!("this is no request: {error}")),
            (_, Err(error)) => (RefusalKind::Host, format!("cannot keep the connection: {error}")),
        };
        reply(&client.stream, &Answer::Error(Refusal { kind: refusal.0, message: refusal.1 }));
    }
}

impl Client {
    /// Reads what is there, up to the end of a line. Whoever sends more than one line, or none that ends, is gone.
    fn read(&mut self) -> Progress {
        let mut buffer = [0; 4096];
        loop {
            let count = match self.receive(&mut buffer) {
                Ok(0) => return Progress::Gone,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Partial,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Progress::Gone,
            };
            self.line.extend_from_slice(&buffer[..count]);
            match self.line.iter().position(|byte| *byte == b'\n') {
                Some(end) if end + 1 == self.line.len() => return Progress::Line,
                None if self.line.len() <= MAX_LINE => {}
                _ => return Progress::Gone,
            }
        }
    }
}

impl Client {
    /// Reads bytes, and keeps the descriptors that came last.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg(&self.stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors = descriptors.collect();
            }
        }
        Ok(message.bytes)
    }
}

impl MutEventSubscriber for Server {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            eprintln!("lighter-vmm: cannot poll the control socket: {error}");
        }
    }
}

/// Writes one line. What the socket does not take at once is not worth waiting for.
fn reply(mut stream: &UnixStream, answer: &Answer) {
    let mut line = serde_json::to_vec(answer).expect("invariant: answers are plain data");
    line.push(b'\n');
    if stream.write_all(&line).is_err() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::super::{Client, ClientError, Done};
    use super::*;
    use crate::report;
    use crate::worker::Worker;

    /// A served socket whose owner answers every request with its own description.
    fn with_server(client: impl FnOnce(&Path) + Send + 'static) {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("control.sock");
        let (reporter, reports) = report::channel().unwrap();
        let mut worker = Worker::new(false).unwrap();
        worker.subscribe(Box::new(Server::listen(&path, reporter).unwrap()));
        let thread = std::thread::spawn(move || client(&path));
        while !thread.is_finished() {
            worker.run(10).unwrap();
            while let Some(report) = reports.next() {
                let Report::Asked(mut asked) = report else { panic!("{report:?}") };
                let with = if asked.take_descriptor().is_some() { " with a descriptor" } else { "" };
                let state = Some(format!("{:?}{with}", asked.request));
                asked.answer(&Answer::Ok(Done { state, ..Done::default() }));
            }
        }
        thread.join().unwrap();
    }

    fn connect(path: &Path) -> Client {
        Client::connect(path, Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn requests_of_many_clients_are_answered() {
        with_server(|path| {
            let (mut first, mut second) = (connect(path), connect(path));
            for client in [&mut first, &mut second] {
                assert_eq!(client.ask(&Request::Pause).unwrap().state.as_deref(), Some("Pause"));
            }
            drop(first);
            assert_eq!(second.ask(&Request::Resume).unwrap().state.as_deref(), Some("Resume"));
        });
    }

    #[test]
    fn a_descriptor_comes_with_its_request_and_with_no_other() {
        with_server(|path| {
            let mut client = connect(path);
            let state = |done: Done| done.state.unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            let with = state(client.ask_with(&Request::Pause, null.as_fd()).unwrap());
            assert_eq!(with, "Pause with a descriptor");
            assert_eq!(state(client.ask(&Request::Pause).unwrap()), "Pause");
        });
    }

    #[test]
    fn nonsense_is_refused_and_the_connection_goes_on() {
        with_server(|path| {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(b"{\"request\":\"fly\"}\n").unwrap();
            let mut answer = [0; 256];
            let count = stream.read(&mut answer).unwrap();
            let answer: Answer = serde_json::from_slice(&answer[..count]).unwrap();
            assert!(
                matches!(answer, Answer::Error(Refusal { kind: RefusalKind::Request, .. })),
                "{answer:?}"
            );
            stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
            let mut answer = [0; 256];
            let count = stream.read(&mut answer).unwrap();
            assert!(answer[..count].starts_with(b"{\"ok\":"));
        });
    }

    #[test]
    fn endless_lines_and_too_many_clients_are_cut_off() {
        with_server(|path| {
            let mut stream = UnixStream::connect(path).unwrap();
            // The write may fail half way: the other end is gone by then.
            let _ = stream.write_all(&[b' '; 2 * MAX_LINE]);
            assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
            drop(stream);
            let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| connect(path)).collect();
            for client in &mut clients {
                client.ask(&Request::Status).unwrap();
            }
            assert!(matches!(connect(path).ask(&Request::Status), Err(ClientError::Io(_))));
            drop(clients);
        });
    }
}
