//! Socket device between guest and host (virtio 1.2, section 5.10), streams only.
//!
//! The host's side are Unix sockets as in Firecracker: see [`hub`]. The guest controls the packet headers,
//! their payload and when there are buffers; it can neither make the VMM hold more than
//! [`hub::MAX_CONNECTIONS`] times [`credit::RECEIVE_BUFFER`] bytes nor reach any host path but
//! `<uds_path>_<port>`.

mod clients;
pub mod connection;
pub mod credit;
pub mod handshake;
pub mod header;
mod host_end;
pub mod hub;
mod poller;
mod socket;
mod transport_reset;

pub use self::socket::listen;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;

use self::header::{HEADER_SIZE, Header};
use self::hub::Hub;
use self::transport_reset::TransportReset;
use super::device::{Activation, HostEvent, Interrupt, ProtocolViolation, RestoreError, VirtioDevice};
use super::guest_buffers::{Direction, GuestBuffers};
use super::queue::{ActiveQueue, Chain};
use crate::GuestRam;

/// Queue on which the guest receives packets.
const RX: u16 = 0;
/// Queue on which the guest sends packets.
const TX: u16 = 1;
/// Queue on which the guest receives events.
const EVENT: u16 = 2;

/// The driver fills RX with pages when it starts: 128 of them hold more than a connection's window.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// Context IDs below are reserved (virtio 1.2, section 5.10.4).
const FIRST_GUEST_CID: u32 = 3;

/// Building the device failed.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context ID is one that no guest can have.
    #[error("guest CID {0} is reserved, use 3 to 4294967294")]
    ReservedCid(u32),
    /// The socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A vsock device.
pub struct Vsock {
    guest_cid: u32,
    hub: Hub,
    reset_event: TransportReset,
    active: Option<Active>,
}

struct Active {
    mem: GuestRam,
    rx: ActiveQueue,
    tx: ActiveQueue,
    event: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
}

/// What survives a snapshot. Connections do not: the guest is told so.
#[derive(Debug, Deserialize, Serialize)]
struct VsockState {
    next_host_port: u32,
}

impl Vsock {
    /// A device for the guest `guest_cid` that listens on `uds_path` at once. Clients that come before the
    /// guest's driver is ready wait in the socket's backlog.
    pub fn new(guest_cid: u32, uds_path: &Path) -> Result<Self, VsockError> {
        if !(FIRST_GUEST_CID..u32::MAX).contains(&guest_cid) {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        let hub = Hub::bind(guest_cid.into(), uds_path)
            .map_err(|source| VsockError::Listen { path: uds_path.to_owned(), source })?;
        Ok(Self { guest_cid, hub, reset_event: TransportReset::default(), active: None })
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.guest_cid).to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.iter().skip(start).chain(std::iter::repeat(&0));
        for (target, source) in data.iter_mut().zip(bytes) {
            *target = *source;
        }
    }

    fn activate(&mut self, activation: Activation) {
        let mut queues = ActiveQueue::all(activation.queues, &activation.interrupt).into_iter();
        let (Some(rx), Some(tx), Some(event)) = (queues.next(), queues.next(), queues.next()) else {
            return;
        };
        // Clients that waited for the driver are served by the event loop's next call.
        activation.interrupt.reschedule(RX);
        self.active = Some(Active { mem: activation.mem, rx, tx, event, interrupt: activation.interrupt });
    }

    fn reset(&mut self) {
        self.active = None;
        self.reset_event = TransportReset::default();
        self.hub.forget_guest();
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        match index {
            TX => active.receive_from_guest(&mut self.hub)?,
            RX | EVENT => {}
            _ => return Ok(()),
        }
        active.serve(&mut self.hub, &mut self.reset_event)
    }

    fn host_events(&self) -> Vec<HostEvent> {
        vec![HostEvent { fd: self.hub.raw_fd(), events: EventSet::IN, token: 0 }]
    }

    fn process_host_event(&mut self, _: u32, _: EventSet) -> Result<(), ProtocolViolation> {
        self.hub.poll();
        self.process_queue(RX)
    }

    fn take_host_failure(&mut self) -> Option<String> {
        self.hub.take_failure()
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active
            .as_ref()
            .map_or_else(Vec::new, |active| vec![active.rx.state(), active.tx.state(), active.event.state()])
    }

    fn save(&self) -> Vec<u8> {
        let state = VsockState { next_host_port: self.hub.next_host_port() };
        postcard::to_stdvec(&state).expect("invariant: a number always encodes")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state: VsockState = postcard::from_bytes(state)
            .map_err(|error| RestoreError { device: "vsock", what: error.to_string() })?;
        self.hub.set_next_host_port(state.next_host_port);
        self.reset_event = TransportReset::due();
        Ok(())
    }
}

impl Active {
    /// Tells the guest what there is to tell: first that connections are gone, then packets.
    fn serve(&mut self, hub: &mut Hub, reset_event: &mut TransportReset) -> Result<(), ProtocolViolation> {
        if reset_event.advance(&mut self.event, &self.mem)? {
            self.send_to_guest(hub)?;
        }
        Ok(())
    }

    fn receive_from_guest(&mut self, hub: &mut Hub) -> Result<(), ProtocolViolation> {
        let mem = &self.mem;
        self.tx.process(mem, |chain| receive_packet(mem, chain, hub).map(|()| 0))
    }

    /// Puts packets into the RX queue, at most as many as it has descriptors.
    fn send_to_guest(&mut self, hub: &mut Hub) -> Result<(), ProtocolViolation> {
        for _ in 0..self.rx.size() {
            if !hub.has_packet() {
                return self.rx.signal(&self.mem);
            }
            let Some(chain) = self.rx.pop(&self.mem)? else {
                // Without a buffer, the driver's next notification goes on here.
                if self.rx.enable_notifications(&self.mem)? {
                    continue;
                }
                return self.rx.signal(&self.mem);
            };
            let head = chain.head_index();
            match send_packet(&self.mem, chain, hub)? {
                Some(len) => self.rx.complete(&self.mem, head, len)?,
                None => self.rx.undo_pop(1),
            }
        }
        self.interrupt.reschedule(RX);
        self.rx.signal(&self.mem)
    }
}

/// Reads a packet once and hands it on.
fn receive_packet(mem: &GuestRam, chain: Chain<'_>, hub: &mut Hub) -> Result<(), ProtocolViolation> {
    let packet = GuestBuffers::collect(mem, chain, Direction::Readable)
        .map_err(|error| violation(TX, error.to_string()))?;
    let mut bytes = [0; HEADER_SIZE];
    if !packet.copy_to(0, &mut bytes) {
        let what = format!("packet of {} bytes has no header", packet.len());
        return Err(violation(TX, what));
    }
    let header = Header::parse(&bytes);
    let payload = packet.len().saturating_sub(HEADER_SIZE);
    if usize::try_from(header.len).map_or(true, |len| len > payload) {
        let what = format!("packet announces {} bytes and has {payload}", header.len);
        return Err(violation(TX, what));
    }
    hub.on_packet(&header, &packet);
    Ok(())
}

/// Fills a chain with the next packet, if there is one after all.
fn send_packet(mem: &GuestRam, chain: Chain<'_>, hub: &mut Hub) -> Result<Option<u32>, ProtocolViolation> {
    let target = GuestBuffers::collect(mem, chain, Direction::Writable)
        .map_err(|error| violation(RX, error.to_string()))?;
    if target.len() <= HEADER_SIZE {
        let what = format!("buffer of {} bytes holds no packet", target.len());
        return Err(violation(RX, what));
    }
    Ok(hub.next_packet(&target).and_then(|len| u32::try_from(len).ok()))
}

fn violation(queue: u16, what: String) -> ProtocolViolation {
    ProtocolViolation { queue, what }
}

#[cfg(test)]
mod tests;
