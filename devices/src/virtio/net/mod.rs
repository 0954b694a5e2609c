//! Network device (virtio 1.2, section 5.1) with a TAP interface, or a stream socket, behind it.
//!
//! The guest controls its frames, the offload header in front of each and where its buffers are. Frames go
//! between guest memory and the TAP without a copy; the kernel checks the offload header. Without buffers of
//! the guest the TAP is not polled, so frames queue, and are dropped, in the kernel.

pub mod counters;
pub mod detour;
mod features;
mod header;
mod rx;
mod rx_chains;
pub mod stream;
pub mod tap;
mod tx;
mod wire;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;

use self::counters::Counters;
use self::rx::{Receiver, RxStop};
use self::tap::{FrameIo, Tap};
use self::tx::{TxStop, transmit};
use self::wire::Wire;
use super::device::{Activation, HostEvent, Interrupt, ProtocolViolation, RestoreError, VirtioDevice};
use super::queue::ActiveQueue;
use crate::GuestRam;
use crate::rate::{RateControl, RateLimiter};

/// Queue on which the guest receives frames.
const RX: u16 = 0;
/// Queue on which the guest sends frames.
const TX: u16 = 1;

const QUEUE_SIZES: [u16; 2] = [256; 2];

/// Token of the TAP's descriptor.
const TAP: u32 = 0;
/// Token of the limiter's timer.
const TIMER: u32 = 1;

/// What the guest reads in configuration space.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct NetIdentity {
    /// MAC address of the guest's side.
    pub mac: [u8; 6],
    /// Largest packet without Ethernet header; `None` leaves it to the driver.
    pub mtu: Option<u16>,
}

/// A network device.
pub struct Net<T: FrameIo = Tap> {
    wire: Wire<T>,
    identity: NetIdentity,
    active: Option<Active>,
    /// A part of a frame waits for the wire.
    flushing: bool,
    /// What the event loop was last told to poll for.
    polled: EventSet,
    polled_changed: bool,
}

struct Active {
    mem: GuestRam,
    rx: ActiveQueue,
    tx: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    receiver: Receiver,
    rx_stop: RxStop,
    tx_stop: TxStop,
}

impl<T: FrameIo> Net<T> {
    /// A device with `tap` behind it, which carries no more than `limiter` admits.
    pub fn new(tap: T, identity: NetIdentity, limiter: RateLimiter) -> Self {
        Self {
            wire: Wire::new(tap, limiter),
            identity,
            active: None,
            flushing: false,
            polled: EventSet::empty(),
            polled_changed: false,
        }
    }

    /// The counters, which stay readable while the device is in use.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.wire.counters())
    }

    fn receive(&mut self) -> Result<(), ProtocolViolation> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        active.rx_stop = active.receiver.receive(&mut active.rx, &active.mem, &mut self.wire)?;
        if active.rx_stop == RxStop::Budget {
            active.interrupt.reschedule(RX);
        }
        self.update_polled();
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), ProtocolViolation> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        // Nothing is left of an earlier frame when the next one is sent.
        self.flushing = self.wire.flush();
        active.tx_stop = transmit(&mut active.tx, &active.mem, &mut self.wire)?;
        self.flushing = self.wire.flush();
        if active.tx_stop == TxStop::Budget {
            active.interrupt.reschedule(TX);
        }
        if self.wire.tap().has_frames() {
            return self.receive();
        }
        self.update_polled();
        Ok(())
    }

    fn update_polled(&mut self) {
        let mut wanted = EventSet::empty();
        if let Some(active) = &self.active {
            // While the TAP is looked at anyway, each frame would wake an event loop that does not sleep.
            if active.rx_stop == RxStop::NoFrame && !active.rx.is_polled() {
                wanted |= EventSet::IN;
            }
            if active.tx_stop == TxStop::TapFull || self.flushing {
                wanted |= EventSet::OUT;
            }
        }
        if wanted != self.polled {
            self.polled = wanted;
            self.polled_changed = true;
        }
    }

    fn config_space(&self) -> [u8; 12] {
        let [m0, m1, m2, m3, m4, m5] = self.identity.mac;
        let [s0, s1] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        let [q0, q1] = 1u16.to_le_bytes();
        let [t0, t1] = self.identity.mtu.unwrap_or(0).to_le_bytes();
        [m0, m1, m2, m3, m4, m5, s0, s1, q0, q1, t0, t1]
    }
}

impl<T: FrameIo> VirtioDevice for Net<T> {
    fn name(&self) -> &'static str {
        "net"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        features::offered(self.identity.mtu.is_some(), self.wire.tap().has_offloads())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config_space();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.iter().skip(start).chain(std::iter::repeat(&0));
        for (target, source) in data.iter_mut().zip(bytes) {
            *target = *source;
        }
    }

    fn activate(&mut self, activation: Activation) {
        let features = activation.acknowledged_features;
        let mut queues = ActiveQueue::all(activation.queues, &activation.interrupt).into_iter();
        let (Some(rx), Some(tx)) = (queues.next(), queues.next()) else {
            return;
        };
        self.wire.set_offloads(features::tap_offloads(features));
        self.active = Some(Active {
            mem: activation.mem,
            rx,
            tx,
            interrupt: activation.interrupt,
            receiver: Receiver::new(features),
            // The first event finds out how it really is.
            rx_stop: RxStop::NoFrame,
            tx_stop: TxStop::NoFrame,
        });
        self.update_polled();
    }

    fn reset(&mut self) {
        self.active = None;
        self.update_polled();
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        match index {
            RX => self.receive(),
            TX => self.transmit(),
            _ => Ok(()),
        }
    }

    fn is_pollable(&self) -> bool {
        true
    }

    fn set_polled(&mut self, polled: bool) -> Result<(), ProtocolViolation> {
        if let Some(active) = &mut self.active {
            active.rx.set_polled(polled);
            active.tx.set_polled(polled);
        }
        self.update_polled();
        self.receive()?;
        self.transmit()
    }

    fn poll(&mut self) -> Result<bool, ProtocolViolation> {
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let can_send = !matches!(active.tx_stop, TxStop::TapFull | TxStop::Limited);
        let can_receive = !matches!(active.rx_stop, RxStop::Broken | RxStop::Limited);
        let sends = can_send && active.tx.available(&active.mem)? > 0;
        let receives = can_receive && active.rx.available(&active.mem)? > 0;
        let before = active.rx.state().next_used;
        if sends {
            self.transmit()?;
        }
        if receives {
            self.receive()?;
        }
        let received = self.active.as_ref().is_some_and(|active| active.rx.state().next_used != before);
        Ok(sends || received)
    }

    fn host_events(&self) -> Vec<HostEvent> {
        if self.active.is_none() {
            return Vec::new();
        }
        let timer = HostEvent { fd: self.wire.limiter().fd(), events: EventSet::IN, token: TIMER };
        let tap = HostEvent { fd: self.wire.tap().fd().as_raw_fd(), events: self.polled, token: TAP };
        if self.polled.is_empty() { vec![timer] } else { vec![timer, tap] }
    }

    fn host_events_changed(&mut self) -> bool {
        std::mem::take(&mut self.polled_changed)
    }

    fn process_host_event(&mut self, token: u32, events: EventSet) -> Result<(), ProtocolViolation> {
        if token == TIMER {
            self.wire.process_timer();
            self.receive()?;
            return self.transmit();
        }
        let failed = EventSet::ERROR | EventSet::HANG_UP;
        if events.intersects(EventSet::IN | failed) {
            self.receive()?;
        }
        if events.intersects(EventSet::OUT | failed) {
            self.transmit()?;
        }
        Ok(())
    }

    fn rate_control(&self) -> Option<RateControl> {
        Some(self.wire.limiter().control())
    }

    fn take_host_failure(&mut self) -> Option<String> {
        self.wire.take_failure()
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active.as_ref().map_or_else(Vec::new, |active| vec![active.rx.state(), active.tx.state()])
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.identity).expect("invariant: plain numbers always encode")
    }

    /// The guest goes on with the identity that it has read, whatever this device was made with.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.identity = postcard::from_bytes(state)
            .map_err(|error| RestoreError { device: "net", what: error.to_string() })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
