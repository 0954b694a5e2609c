//! The event loop: one thread, the one that owns the VM, drives every device.
//!
//! ```text
//! request: ioeventfd -> worker::run -> Block::process_queue -> Queue::pop -> parse -> execute -> irqfd
//! ```

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::device::HostEvent;
use devices::virtio::transport::MmioTransport;
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::polling::{Poller, Turn};

/// Events taken from one epoll_wait; a bound on the buffer, not on what can be polled.
const EVENTS_PER_WAIT: usize = 32;
/// Tokens of queue notifications are below, those of the others from here on.
const TOKEN_CHANGED: u32 = 1 << 16;
/// Token n of a device's own descriptors is this plus n.
const TOKEN_HOST: u32 = 1 << 17;

/// The event loop could not be set up or failed.
#[derive(Debug, thiserror::Error)]
#[error("event loop: {0}")]
pub struct WorkerError(event_manager::Error);

/// The event loop.
pub struct Worker {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    /// The devices' subscribers.
    driven: Vec<SubscriberId>,
    /// The same while they are left alone.
    resting: Vec<Box<dyn MutEventSubscriber>>,
    poller: Poller,
}

impl Worker {
    /// A loop that drives nothing yet; `polling` says whether it may use CPU time to look for work.
    pub fn new(polling: bool) -> Result<Self, WorkerError> {
        let manager = EventManager::new_with_capacity(EVENTS_PER_WAIT).map_err(WorkerError)?;
        Ok(Worker { manager, driven: Vec::new(), resting: Vec::new(), poller: Poller::new(polling) })
    }

    /// Drives `transport` from now on. `changed` is signalled when its host descriptors may have changed.
    pub fn attach(&mut self, transport: Arc<MmioTransport>, changed: EventFd) {
        let worked = self.poller.add(transport.clone());
        let driven = Driven { transport, changed, host_events: Vec::new(), worked };
        self.driven.push(self.manager.add_subscriber(Box::new(driven)));
    }

    /// Leaves the devices alone until [`Worker::wake_devices`]: none of them touches guest memory meanwhile. What
    /// they are notified of stays in their eventfds.
    pub fn rest_devices(&mut self) {
        self.poller.stop();
        for id in self.driven.drain(..) {
            // Each is there: this and `attach` are the only ones who know it.
            self.resting.extend(self.manager.remove_subscriber(id).ok());
        }
    }

    /// Drives the devices again.
    pub fn wake_devices(&mut self) {
        for subscriber in self.resting.drain(..) {
            self.driven.push(self.manager.add_subscriber(subscriber));
        }
    }

    /// Makes [`Worker::run`] return whenever `fd` was signalled.
    pub fn wake_on(&mut self, fd: EventFd) {
        self.manager.add_subscriber(Box::new(Wake(fd)));
    }

    /// Makes [`Worker::run`] return while `fd` is readable; whoever runs the loop reads it.
    pub fn wake_while_readable(&mut self, fd: OwnedFd) {
        self.manager.add_subscriber(Box::new(Readable(fd)));
    }

    /// Lets `subscriber` take part in the loop.
    pub fn subscribe(&mut self, subscriber: Box<dyn MutEventSubscriber>) {
        self.manager.add_subscriber(subscriber);
    }

    /// Waits for events, at most `timeout_ms` (for ever if negative), and handles them.
    pub fn run(&mut self, timeout_ms: i32) -> Result<(), WorkerError> {
        let timeout_ms = match self.poller.turn() {
            Turn::Sleep => timeout_ms,
            Turn::Others => 0,
        };
        let begin = Instant::now();
        let events = self.manager.run_with_timeout(timeout_ms).map_err(WorkerError)?;
        if events > 0 {
            self.poller.woke(if timeout_ms == 0 { Duration::ZERO } else { begin.elapsed() });
        }
        Ok(())
    }
}

/// Returns from the loop; whoever waits clears the descriptor and looks.
struct Wake(EventFd);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::new(&self.0, EventSet::IN));
    }
}

/// Returns from the loop while the descriptor is readable.
struct Readable(OwnedFd);

impl MutEventSubscriber for Readable {
    fn process(&mut self, _: Events, _: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::new(&self.0, EventSet::IN));
    }
}

/// One virtio device in the loop.
struct Driven {
    transport: Arc<MmioTransport>,
    changed: EventFd,
    /// What is registered.
    host_events: Vec<HostEvent>,
    /// Tells the poller that there was work.
    worked: Arc<AtomicBool>,
}

impl Driven {
    /// Registers the device's current descriptors instead of the previous ones.
    fn update_host_events(&mut self, ops: &mut EventOps) {
        let Some(wanted) = self.transport.take_host_events() else { return };
        for old in &self.host_events {
            if !wanted.iter().any(|event| event.fd == old.fd) {
                // It may be closed, which removed it.
                let _ = ops.remove(host_events(old));
            }
        }
        for event in &wanted {
            if self.host_events.iter().any(|old| old.fd == event.fd) {
                // One that was closed and opened anew under its number is not known to epoll any more.
                if ops.modify(host_events(event)).is_err() {
                    watch(ops, host_events(event));
                }
            } else {
                watch(ops, host_events(event));
            }
        }
        self.host_events = wanted;
    }
}

impl MutEventSubscriber for Driven {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TOKEN_CHANGED => {
                let _ = self.changed.read();
            }
            token if token >= TOKEN_HOST => {
                self.worked.store(true, Ordering::Relaxed);
                self.transport.process_host_event(token - TOKEN_HOST, events.event_set());
            }
            queue => {
                if let Some(notifier) = self.transport.queue_notifiers().get(queue as usize) {
                    let _ = notifier.read();
                    self.worked.store(true, Ordering::Relaxed);
                    self.transport.process_queue(queue as u16);
                }
            }
        }
        self.update_host_events(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (queue, notifier) in self.transport.queue_notifiers().iter().enumerate() {
            watch(ops, Events::with_data(notifier, queue as u32, EventSet::IN));
        }
        watch(ops, Events::with_data(&self.changed, TOKEN_CHANGED, EventSet::IN));
        for event in &self.host_events {
            watch(ops, host_events(event));
        }
        self.update_host_events(ops);
    }
}

fn host_events(event: &HostEvent) -> Events {
    Events::with_data_raw(event.fd as RawFd, TOKEN_HOST + event.token, event.events)
}

/// A descriptor that cannot be polled leaves its device silent; the VM goes on and the log says why.
fn watch(ops: &mut EventOps, events: Events) {
    if let Err(error) = ops.add(events) {
        eprintln!("lighter-vmm: cannot poll descriptor {}: {error}", events.fd());
    }
}
