//! A service inside the VMM, on the guest's own wire: frames for its address never reach the host's network.
//!
//! ```text
//! guest ── frame ─► Detour ─┬─ for the service ─► Stack (TCP) ─► Respond
//!                           └─ others ──────────► TAP           │
//! guest ◄─ frame ── Detour ◄── frames that wait ◄───────────────┘
//! ```
//!
//! The guest controls every byte. The service sees what a connection carries, up to a limit, and answers once.

mod stack;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use self::stack::Stack;
use super::header::HEADER_SIZE;
use super::stream::Stream;
use super::tap::{FrameIo, Tap};
use super::{Net, NetIdentity};
use crate::rate::RateLimiter;
use crate::virtio::device::VirtioDevice;
use crate::virtio::guest_buffers::{GuestBuffers, IoVecs};

/// Bytes of a frame that say whom it is for: an ARP packet over Ethernet (RFC 826).
const HEAD: usize = 42;
/// Longest frame for the service: more than a request in one segment. Longer ones are dropped.
const MAX_SERVED: usize = 16 << 10;
/// What a frame's header says to the driver: nothing.
const HEADER: [u8; HEADER_SIZE] = [0; HEADER_SIZE];

/// What answers requests that come over TCP.
pub trait Respond: Send {
    /// The answer to what a client has sent so far, after which the connection ends; `None` while there is more to
    /// come.
    fn respond(&mut self, request: &[u8]) -> Option<Vec<u8>>;
}

/// A service and its address; cheap to clone.
#[derive(Clone)]
pub struct Service {
    /// Where the guest finds it, at port 80.
    pub address: Ipv4Addr,
    /// What answers.
    respond: Arc<Mutex<dyn Respond>>,
    devices: Devices,
}

/// Makers of devices with a service on them. Known from [`Service::new`] on only, so that a program that has no
/// services has no TCP in it either.
#[derive(Clone, Copy)]
struct Devices {
    tap: Maker<Tap>,
    stream: Maker<Stream>,
}

type Maker<T> = fn(T, Service, NetIdentity, RateLimiter) -> Box<dyn VirtioDevice>;

fn device<T: FrameIo + Send + 'static>(
    wire: T,
    service: Service,
    identity: NetIdentity,
    limiter: RateLimiter,
) -> Box<dyn VirtioDevice> {
    Box::new(Net::new(Detour::new(wire, service), identity, limiter))
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({})", self.address)
    }
}

impl Service {
    /// The service that `respond` gives at `address`.
    pub fn new(address: Ipv4Addr, respond: Arc<Mutex<dyn Respond>>) -> Self {
        Self { address, respond, devices: Devices { tap: device, stream: device } }
    }

    /// An interface with `tap` behind it and this service on it.
    pub fn on_tap(&self, tap: Tap, identity: NetIdentity, limiter: RateLimiter) -> Box<dyn VirtioDevice> {
        (self.devices.tap)(tap, self.clone(), identity, limiter)
    }

    /// An interface with `stream` behind it and this service on it.
    pub fn on_stream(
        &self,
        stream: Stream,
        identity: NetIdentity,
        limiter: RateLimiter,
    ) -> Box<dyn VirtioDevice> {
        (self.devices.stream)(stream, self.clone(), identity, limiter)
    }

    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.respond.lock().unwrap_or_else(PoisonError::into_inner).respond(request)
    }
}

/// A wire with a service on it.
pub struct Detour<T> {
    wire: T,
    service: Service,
    stack: Stack,
}

impl<T: FrameIo> Detour<T> {
    /// Puts `service` on `wire`.
    pub fn new(wire: T, service: Service) -> Self {
        let stack = Stack::new(service.address);
        Self { wire, service, stack }
    }

    fn is_for_service(&self, frame: &GuestBuffers<'_>) -> bool {
        let mut head = [0; HEAD];
        // Frames of TCP and ARP are never shorter.
        frame.copy_to(HEADER_SIZE, &mut head) && destination(&head) == Some(self.service.address)
    }
}

/// Whom a frame is for, by its ARP or IPv4 header.
fn destination(head: &[u8; HEAD]) -> Option<Ipv4Addr> {
    let field = |at: usize| head.get(at..).unwrap_or_default();
    let at = match field(12).first_chunk::<2>()? {
        [0x08, 0x06] => 38,
        [0x08, 0x00] => 30,
        _ => return None,
    };
    field(at).first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

impl<T: FrameIo> FrameIo for Detour<T> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wire.fd()
    }

    fn set_offloads(&self, flags: libc::c_uint) -> io::Result<()> {
        self.wire.set_offloads(flags)
    }

    fn has_offloads(&self) -> bool {
        self.wire.has_offloads()
    }

    fn has_frames(&self) -> bool {
        self.stack.has_frames()
    }

    fn receive(&mut self, vecs: &mut IoVecs<'_>) -> io::Result<usize> {
        let service = &self.service;
        let Some(frame) = self.stack.take_frame(|request| service.answer(request)) else {
            return self.wire.receive(vecs);
        };
        let count = vecs.copy_from(&HEADER);
        Ok(count.saturating_add(vecs.after(count).copy_from(&frame)))
    }

    fn send(&mut self, frame: &GuestBuffers<'_>) -> io::Result<()> {
        if !self.is_for_service(frame) {
            return self.wire.send(frame);
        }
        let len = frame.len().saturating_sub(HEADER_SIZE);
        if len > MAX_SERVED {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = vec![0; len];
        frame.copy_to(HEADER_SIZE, &mut bytes);
        let service = &self.service;
        self.stack.put_frame(bytes, |request| service.answer(request));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<bool> {
        self.wire.flush()
    }
}

#[cfg(test)]
mod tests;
