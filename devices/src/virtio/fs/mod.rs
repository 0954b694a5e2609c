//! File system device (virtio 1.2, section 5.11): carries FUSE requests to a file server and its replies back.
//!
//! ```text
//! driver ── chain ──► submit ── message, renumbered ──► socket ──► server (another process)
//!        ◄─ used ─── answer ◄── message, guest's number ◄── socket ◄──┘
//! ```
//!
//! The device knows no file system and looks at nothing but the headers. The guest controls what it asks for; the
//! server, which works for the guest, what it replies. Neither can make the device write anywhere but into the
//! buffers of a request under way, or wait. When the server is gone every request is answered with ENOTCONN.

mod message;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;

use self::message::{IN_HEADER_BYTES, InHeader, OUT_HEADER_BYTES, OutHeader};
use self::server::{Server, Waiting};
use super::device::{Activation, HostEvent, ProtocolViolation, RestoreError, VirtioDevice, read_space};
use super::guest_buffers::{GuestBuffers, IoVecs};
use super::queue::{ActiveQueue, Chain, Handled};
use crate::GuestRam;

/// Longest name of a file system in bytes (section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;

/// High-priority queue and one request queue (section 5.11.2).
const QUEUES: usize = 2;
/// Descriptors in a queue. Linux asks for no more pages in one request than fit, less four: 112 KiB, which is a message
/// that any host's sockets take.
const QUEUE_SIZE: u16 = 32;
/// Bytes of one request. Stops a guest from making the host's kernel hold more than a socket may.
const MAX_REQUEST_BYTES: usize = 132 << 10;
/// Requests under way. A guest that makes a chain available again before it was answered does not get further.
const MAX_IN_FLIGHT: usize = QUEUES * QUEUE_SIZE as usize;
/// Replies handled in one turn of the event loop.
const MAX_REPLIES: usize = 64;
/// What the server may take for what it is doing when the machine is paused.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(5);

/// The device.
pub struct Fs {
    config: [u8; MAX_TAG_BYTES + 4],
    /// Absent where there never was one, and when it is gone.
    server: Option<Server>,
    /// The guest has a session with the server, which only that server can go on with.
    begun: bool,
    /// The server takes no more for now; or the table of requests is full.
    stalled: bool,
    events_changed: bool,
    /// What the host last failed at, until somebody asks.
    failure: Option<String>,
    /// Present from `activate` to `reset`.
    active: Option<Active>,
    /// The device's number for the next request.
    next_unique: u64,
}

struct Active {
    mem: GuestRam,
    queues: Vec<ActiveQueue>,
    in_flight: Vec<Request>,
}

/// A request that the server has.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// The device's number.
    unique: u64,
    /// The guest's number.
    guest_unique: u64,
    queue: u16,
    head: u16,
}

/// What a snapshot keeps.
#[derive(Deserialize, Serialize)]
struct FsState {
    begun: bool,
}

impl Fs {
    /// A file system that the guest calls `tag`, of which the first 36 bytes count. `socket` leads to its server
    /// (SOCK_SEQPACKET, one FUSE message each); without one every request fails.
    pub fn new(tag: &str, socket: Option<OwnedFd>) -> Self {
        let mut config = [0; MAX_TAG_BYTES + 4];
        for (byte, &value) in config.iter_mut().take(MAX_TAG_BYTES).zip(tag.as_bytes()) {
            *byte = value;
        }
        if let Some(queues) = config.get_mut(MAX_TAG_BYTES..) {
            queues.copy_from_slice(&1u32.to_le_bytes());
        }
        Self {
            config,
            server: socket.map(Server::new),
            begun: false,
            stalled: false,
            events_changed: false,
            failure: None,
            active: None,
            next_unique: 1,
        }
    }
}

impl VirtioDevice for Fs {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let queues = ActiveQueue::all(activation.queues, &activation.interrupt);
        self.active = Some(Active { mem: activation.mem, queues, in_flight: Vec::new() });
    }

    fn reset(&mut self) {
        self.active = None;
        self.stalled = false;
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        self.submit_all(index)?;
        if self.server.is_none() { self.fail_all(libc::ENOTCONN) } else { Ok(()) }
    }

    fn quiesce(&mut self) -> Result<(), ProtocolViolation> {
        let end = Instant::now().checked_add(QUIESCE_TIMEOUT);
        while self.active.as_ref().is_some_and(|active| !active.in_flight.is_empty()) {
            let left = end.map(|end| end.saturating_duration_since(Instant::now())).unwrap_or_default();
            let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            if !self.server.as_ref().is_some_and(|server| server.wait(left)) {
                return self.fail_all(libc::EIO);
            }
            self.take_replies()?;
        }
        Ok(())
    }

    fn host_events(&self) -> Vec<HostEvent> {
        let events = if self.stalled { EventSet::IN | EventSet::OUT } else { EventSet::IN };
        let event = |server: &Server| HostEvent { fd: server.as_fd().as_raw_fd(), events, token: 0 };
        self.server.iter().map(event).collect()
    }

    fn host_events_changed(&mut self) -> bool {
        std::mem::take(&mut self.events_changed)
    }

    fn process_host_event(&mut self, _token: u32, _events: EventSet) -> Result<(), ProtocolViolation> {
        self.take_replies()?;
        if std::mem::take(&mut self.stalled) {
            self.events_changed = true;
            (0..).take(QUEUES).try_for_each(|index| self.process_queue(index))?;
        }
        Ok(())
    }

    fn take_host_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    fn queue_states(&self) -> Vec<virtio_queue::QueueState> {
        self.active.iter().flat_map(|active| active.queues.iter().map(ActiveQueue::state)).collect()
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_allocvec(&FsState { begun: self.begun }).expect("invariant: a flag always serializes")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved: FsState = postcard::from_bytes(state)
            .map_err(|source| RestoreError { device: "fs", what: source.to_string() })?;
        // Another server knows nothing of what the guest has open.
        if saved.begun {
            self.server = None;
        }
        self.begun = saved.begun;
        Ok(())
    }
}

impl Fs {
    /// Sends what queue `index` has to the server.
    fn submit_all(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        let Some(Active { mem, queues, in_flight }) = &mut self.active else { return Ok(()) };
        let Some(queue) = queues.get_mut(usize::from(index)) else { return Ok(()) };
        let (server, failure) = (&mut self.server, &mut self.failure);
        let (unique, stalled) = (&mut self.next_unique, &mut self.stalled);
        let had_server = server.is_some();
        let (stalled_before, begun) = (*stalled, &mut self.begun);
        let result = queue.process_some(mem, |chain| {
            let head = chain.head_index();
            let asked = parse(mem, chain).map_err(|what| ProtocolViolation { queue: index, what })?;
            let Some(there) = server.as_ref() else {
                return Ok(Handled::Done(refuse(&asked, libc::ENOTCONN)));
            };
            if in_flight.len() >= MAX_IN_FLIGHT {
                *stalled = true;
                return Ok(Handled::NotNow);
            }
            match send(there, &asked, *unique) {
                Ok(()) => *begun = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *stalled = true;
                    return Ok(Handled::NotNow);
                }
                Err(error) => {
                    *failure = Some(gone(&error));
                    *server = None;
                    return Ok(Handled::Done(refuse(&asked, libc::ENOTCONN)));
                }
            }
            let request = Request { unique: *unique, guest_unique: asked.header_unique, queue: index, head };
            *unique = unique.wrapping_add(1);
            if asked.writable.is_empty() {
                // FORGET and its like have no reply.
                return Ok(Handled::Done(0));
            }
            in_flight.push(request);
            Ok(Handled::InFlight)
        });
        self.events_changed |= had_server != self.server.is_some() || stalled_before != self.stalled;
        result
    }

    /// Gives the guest what the server replied.
    fn take_replies(&mut self) -> Result<(), ProtocolViolation> {
        for _ in 0..MAX_REPLIES {
            let (Some(server), Some(active)) = (&self.server, &mut self.active) else { break };
            let taken = match server.peek() {
                Ok(Waiting::Nothing) => break,
                Ok(Waiting::Reply { header, len }) => active.answer(server, header, len)?,
                Ok(Waiting::End) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                self.failure = Some(gone(&error));
                self.server = None;
                self.events_changed = true;
                return self.fail_all(libc::ENOTCONN);
            }
        }
        self.active.iter_mut().try_for_each(Active::signal)
    }

    /// Answers everything that is under way.
    fn fail_all(&mut self, errno: i32) -> Result<(), ProtocolViolation> {
        let Some(active) = &mut self.active else { return Ok(()) };
        for request in std::mem::take(&mut active.in_flight) {
            let Some(queue) = active.queues.get_mut(usize::from(request.queue)) else { continue };
            let buffers = reply_buffers(&active.mem, queue, request)?;
            let written = fail(&buffers, errno, request.guest_unique);
            queue.complete(&active.mem, request.head, written)?;
        }
        active.signal()
    }
}

impl Active {
    /// Takes the reply that waits in the socket. The inner error is the server's.
    fn answer(
        &mut self,
        server: &Server,
        header: OutHeader,
        len: usize,
    ) -> Result<io::Result<()>, ProtocolViolation> {
        let mut own = [0; OUT_HEADER_BYTES];
        let position = self.in_flight.iter().position(|request| request.unique == header.unique);
        let Some(position) = position else {
            // To a request before the last reset, or to one that wants no reply.
            let mut vecs = IoVecs::new();
            vecs.push_host(&mut own);
            return Ok(server.take(&mut vecs).map(|_| ()));
        };
        let request = self.in_flight.swap_remove(position);
        let Some(queue) = self.queues.get_mut(usize::from(request.queue)) else { return Ok(Ok(())) };
        let buffers = reply_buffers(&self.mem, queue, request)?;
        let body = len.saturating_sub(OUT_HEADER_BYTES);
        let fits = len <= buffers.len();
        let mut vecs = IoVecs::new();
        vecs.push_host(&mut own);
        if fits {
            vecs.push_guest(&buffers, OUT_HEADER_BYTES, body);
        }
        if let Err(error) = server.take(&mut vecs) {
            let written = fail(&buffers, libc::ENOTCONN, request.guest_unique);
            queue.complete(&self.mem, request.head, written)?;
            return Ok(Err(error));
        }
        let written = if fits {
            buffers.mark_dirty(OUT_HEADER_BYTES, body);
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let header = OutHeader { len, unique: request.guest_unique, ..header };
            if buffers.copy_from(0, &header.bytes()) { len } else { 0 }
        } else {
            fail(&buffers, libc::EIO, request.guest_unique)
        };
        queue.complete(&self.mem, request.head, written)?;
        Ok(Ok(()))
    }

    fn signal(&mut self) -> Result<(), ProtocolViolation> {
        self.queues.iter_mut().try_for_each(|queue| queue.signal(&self.mem))
    }
}

/// One request as the guest made it.
struct Asked<'m> {
    header: [u8; IN_HEADER_BYTES],
    header_unique: u64,
    readable: GuestBuffers<'m>,
    writable: GuestBuffers<'m>,
}

/// The request of a chain, or how it breaks the protocol.
fn parse<'m>(mem: &'m GuestRam, chain: Chain<'m>) -> Result<Asked<'m>, String> {
    let (readable, writable) = GuestBuffers::collect_both(mem, chain).map_err(|error| error.to_string())?;
    let mut header = [0; IN_HEADER_BYTES];
    if !readable.copy_to(0, &mut header) {
        return Err(format!("a request of {} bytes", readable.len()));
    }
    if readable.len() > MAX_REQUEST_BYTES {
        return Err(format!("a request of {} bytes, at most {MAX_REQUEST_BYTES} are taken", readable.len()));
    }
    Ok(Asked { header, header_unique: InHeader::new(header).unique(), readable, writable })
}

/// Sends it as the device's request `unique`.
fn send(server: &Server, asked: &Asked<'_>, unique: u64) -> io::Result<()> {
    let len = asked.readable.len();
    let mut header = InHeader::new(asked.header).renumbered(u32::try_from(len).unwrap_or(u32::MAX), unique);
    let mut vecs = IoVecs::new();
    vecs.push_host(&mut header);
    vecs.push_guest(&asked.readable, IN_HEADER_BYTES, len.saturating_sub(IN_HEADER_BYTES));
    server.send(&mut vecs)
}

/// Answers a request that the server does not get; gives the bytes written.
fn refuse(asked: &Asked<'_>, errno: i32) -> u32 {
    fail(&asked.writable, errno, asked.header_unique)
}

/// Writes a reply that says what went wrong; gives its length, or 0 where no reply is wanted.
fn fail(buffers: &GuestBuffers<'_>, errno: i32, unique: u64) -> u32 {
    let header = OutHeader::failure(errno, unique);
    if buffers.copy_from(0, &header.bytes()) { header.len } else { 0 }
}

/// Where the reply to `request` goes, read again: the guest may have changed its chain, to its own harm.
fn reply_buffers<'m>(
    mem: &'m GuestRam,
    queue: &ActiveQueue,
    request: Request,
) -> Result<GuestBuffers<'m>, ProtocolViolation> {
    GuestBuffers::collect_both(mem, queue.chain_at(mem, request.head))
        .map(|(_, writable)| writable)
        .map_err(|error| queue.violation(error.to_string()))
}

fn gone(error: &io::Error) -> String {
    format!("the file server of the shared directories is gone: {error}")
}
