//! One stream between a guest port and a Unix socket of the host.
//!
//! ```text
//! host client:  RequestDue ─REQUEST─► RequestSent ◄─RESPONSE─► Open
//! guest:        ResponseDue ─RESPONSE─► Open
//! Open ─(guest is gone, the host's reader is slow)─► Draining
//! ```
//!
//! Data goes from guest memory to the socket and back without a copy. Only what the host's reader does not
//! take at once is held, at most [`super::credit::RECEIVE_BUFFER`] bytes. The socket is polled edge-triggered: `readable`
//! stays set until a read finds nothing.

use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::credit::Credit;
use super::header::{
    HEADER_SIZE, HOST_CID, Header, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
    TYPE_STREAM,
};
use super::host_end::{HostEnd, Received};
use crate::virtio::guest_buffers::GuestBuffers;

/// The two ports that name a connection; the context IDs are always the host's and the guest's.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Ports {
    /// Port on the host's side.
    pub host: u32,
    /// Port on the guest's side.
    pub guest: u32,
}

/// What becomes of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It goes on.
    Live,
    /// The guest gets an RST and the connection ends.
    Reset,
    /// It ends; the guest knows.
    Gone,
    /// The guest is done with it, but the host has not read everything: its ports are free.
    Drain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    RequestDue,
    RequestSent,
    ResponseDue,
    Open,
    Draining,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    host: HostEnd,
    stage: Stage,
    credit: Credit,
    /// A read may find data or the end.
    readable: bool,
    /// The host sends no more and everything it sent is in the guest's hands.
    host_ended: bool,
    /// Both directions of the socket are shut down.
    hung_up: bool,
    /// SHUTDOWN_* that the guest should know, and that it was told.
    shutdown_due: u32,
    shutdown_sent: u32,
    /// SHUTDOWN_* that the guest sent.
    guest_shutdown: u32,
    /// The guest asked for our credit.
    credit_wanted: bool,
    /// We asked for the guest's credit and it has not answered.
    credit_asked: bool,
}

impl Connection {
    /// A host client wants to talk to `ports.guest`.
    pub fn from_host(ports: Ports, stream: UnixStream) -> Self {
        Self::new(ports, stream, Stage::RequestDue)
    }

    /// The guest asked with `request` for a connection, and `stream` is the host's answer.
    pub fn from_guest(ports: Ports, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, Stage::ResponseDue);
        connection.credit.learn(request);
        connection
    }

    /// Its ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The socket, for polling.
    pub fn raw_fd(&self) -> RawFd {
        self.host.raw_fd()
    }

    /// What to poll for, edge-triggered.
    pub fn interest(&self) -> EventSet {
        let base = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if self.host.is_flushed() { base } else { base | EventSet::OUT }
    }

    /// Whether the host's side is completely over and only the guest's farewell is missing.
    pub fn is_lingering(&self) -> bool {
        self.shutdown_sent == SHUTDOWN_BOTH || (self.hung_up && self.stage == Stage::RequestSent)
    }

    /// Whether [`Connection::next_packet`] may have something.
    pub fn has_packet(&self) -> bool {
        match self.stage {
            Stage::RequestDue | Stage::ResponseDue => true,
            Stage::RequestSent | Stage::Draining => false,
            Stage::Open => {
                self.can_read()
                    || self.shutdown_news()
                    || self.credit_wanted
                    || self.credit.update_due()
                    || self.must_ask_credit()
            }
        }
    }

    /// Makes the next packet for the guest in `target` and returns its length, header included. `None` if
    /// there is none after all, and nothing is used.
    ///
    /// `target` holds at least a header.
    pub fn next_packet(&mut self, guest_cid: u64, target: &GuestBuffers<'_>) -> Option<usize> {
        let op = match self.stage {
            Stage::RequestDue => {
                self.stage = Stage::RequestSent;
                Op::Request
            }
            Stage::ResponseDue => {
                self.stage = Stage::Open;
                Op::Response
            }
            Stage::RequestSent | Stage::Draining => return None,
            Stage::Open => return self.next_open_packet(guest_cid, target),
        };
        self.write_packet(guest_cid, target, op, 0, 0)
    }

    /// Takes a packet of the guest; `payload` has the header and `header.len` bytes after it.
    pub fn on_packet(&mut self, header: &Header, payload: &GuestBuffers<'_>) -> Fate {
        self.credit.learn(header);
        // Asked once for each time that credit runs out: a guest may well answer that it has none.
        self.credit_asked &= self.credit.sendable() == 0;
        let Some(op) = Op::parse(header.op) else {
            return Fate::Reset;
        };
        match (op, self.stage) {
            (Op::Rst, _) => self.on_guest_gone(),
            (Op::Response, Stage::RequestSent) => self.on_accepted(),
            (Op::Rw, Stage::Open) => self.on_data(header, payload),
            (Op::Shutdown, Stage::Open) => self.on_shutdown(header.flags),
            (Op::CreditUpdate, Stage::Open) => Fate::Live,
            (Op::CreditRequest, Stage::Open) => {
                self.credit_wanted = true;
                Fate::Live
            }
            _ => Fate::Reset,
        }
    }

    /// The guest forgot all its connections. One that it has not heard of goes on.
    pub fn on_guest_reset(&mut self) -> Fate {
        match self.stage {
            Stage::RequestDue => Fate::Live,
            _ => self.on_guest_gone(),
        }
    }

    /// The socket is ready for `events`.
    pub fn on_socket(&mut self, events: EventSet) -> Fate {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = !self.host_ended;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.hung_up = true;
            if self.stage == Stage::RequestDue {
                return Fate::Gone;
            }
            if self.host_ended || self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
                self.shutdown_due = SHUTDOWN_BOTH;
            }
        }
        if events.intersects(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR) {
            return self.flush();
        }
        Fate::Live
    }

    fn new(ports: Ports, stream: UnixStream, stage: Stage) -> Self {
        Self {
            ports,
            host: HostEnd::new(stream),
            stage,
            credit: Credit::default(),
            readable: false,
            host_ended: false,
            hung_up: false,
            shutdown_due: 0,
            shutdown_sent: 0,
            guest_shutdown: 0,
            credit_wanted: false,
            credit_asked: false,
        }
    }

    fn wants_host_data(&self) -> bool {
        self.readable && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    fn can_read(&self) -> bool {
        self.wants_host_data() && self.credit.sendable() > 0
    }

    fn must_ask_credit(&self) -> bool {
        self.wants_host_data() && self.credit.sendable() == 0 && !self.credit_asked
    }

    fn shutdown_news(&self) -> bool {
        self.shutdown_due & !self.shutdown_sent != 0
    }

    fn next_open_packet(&mut self, guest_cid: u64, target: &GuestBuffers<'_>) -> Option<usize> {
        if self.can_read()
            && let Some(len) = self.read_host(target)
        {
            self.credit.on_sent(len);
            return self.write_packet(guest_cid, target, Op::Rw, 0, len);
        }
        if self.shutdown_news() {
            self.shutdown_sent = self.shutdown_due;
            return self.write_packet(guest_cid, target, Op::Shutdown, self.shutdown_due, 0);
        }
        if self.credit_wanted || self.credit.update_due() {
            return self.write_packet(guest_cid, target, Op::CreditUpdate, 0, 0);
        }
        if self.must_ask_credit() {
            self.credit_asked = true;
            return self.write_packet(guest_cid, target, Op::CreditRequest, 0, 0);
        }
        None
    }

    /// Reads from the host into `target` behind the header; `None` if nothing came.
    fn read_host(&mut self, target: &GuestBuffers<'_>) -> Option<u32> {
        let limit = self.credit.sendable().min(MAX_PAYLOAD);
        match self.host.receive(target, limit) {
            Received::Data(len) => return Some(len),
            Received::Nothing => self.readable = false,
            Received::End => self.on_host_end(),
            Received::Broken => {
                self.hung_up = true;
                self.on_host_end();
            }
        }
        None
    }

    fn on_host_end(&mut self) {
        self.readable = false;
        self.host_ended = true;
        self.shutdown_due |= if self.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
    }

    fn write_packet(
        &mut self,
        guest_cid: u64,
        target: &GuestBuffers<'_>,
        op: Op,
        flags: u32,
        len: u32,
    ) -> Option<usize> {
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            ..Header::default()
        };
        self.credit.announce(&mut header);
        self.credit_wanted = false;
        if !target.copy_from(0, &header.to_bytes()) {
            return None;
        }
        HEADER_SIZE.checked_add(usize::try_from(len).ok()?)
    }

    fn on_accepted(&mut self) -> Fate {
        if self.host.greet(&format!("OK {}\n", self.ports.host)).is_err() {
            return Fate::Reset;
        }
        self.stage = Stage::Open;
        // The client may have sent data behind its line, which no event will tell.
        self.readable = true;
        Fate::Live
    }

    fn on_data(&mut self, header: &Header, packet: &GuestBuffers<'_>) -> Fate {
        let after_end = self.guest_shutdown & SHUTDOWN_SEND != 0;
        if after_end || self.credit.on_received(header.len).is_err() {
            return Fate::Reset;
        }
        if self.shutdown_due & SHUTDOWN_RECEIVE != 0 {
            // Was on its way when the host's reader left.
            self.credit.on_forwarded(header.len);
            return Fate::Live;
        }
        match self.host.send(packet, header.len) {
            Ok(taken) => {
                self.credit.on_forwarded(taken);
                Fate::Live
            }
            Err(_) => self.on_reader_gone(),
        }
    }

    fn flush(&mut self) -> Fate {
        if self.host.is_flushed() {
            return Fate::Live;
        }
        match self.host.flush() {
            Ok(flushed) => self.credit.on_forwarded(flushed),
            Err(_) => return self.on_reader_gone(),
        }
        if self.host.is_flushed() { self.on_flushed() } else { Fate::Live }
    }

    /// Everything that the guest sent is with the host.
    fn on_flushed(&mut self) -> Fate {
        if self.stage == Stage::Draining {
            return Fate::Gone;
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            return Fate::Reset;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            self.host.shutdown(Shutdown::Write);
        }
        Fate::Live
    }

    /// The host reads no more: what it has not read is thrown away.
    fn on_reader_gone(&mut self) -> Fate {
        self.host.discard();
        self.credit.on_all_forwarded();
        self.shutdown_due |= SHUTDOWN_RECEIVE;
        self.on_flushed()
    }

    fn on_shutdown(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.host.shutdown(Shutdown::Read);
        }
        if self.host.is_flushed() { self.on_flushed() } else { Fate::Live }
    }

    fn on_guest_gone(&mut self) -> Fate {
        if self.host.is_flushed() {
            return Fate::Gone;
        }
        self.stage = Stage::Draining;
        Fate::Drain
    }
}
