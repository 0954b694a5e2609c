//! The lines between device and driver that need no lock: interrupt, interrupt status, notifications.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::device::Interrupt;

/// Eventfds and the registers that change with them. The driver's interrupt handler reads and acknowledges
/// while the device may be busy, so these stay outside the transport's lock.
pub struct Lines {
    irq: EventFd,
    queues: Vec<EventFd>,
    /// InterruptStatus.
    interrupt_status: AtomicU32,
    /// ConfigGeneration.
    config_generation: AtomicU32,
}

impl Lines {
    /// Opens the eventfds of a device with this many queues.
    pub fn open(queues: usize) -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            irq: eventfd()?,
            queues: (0..queues).map(|_| eventfd()).collect::<io::Result<_>>()?,
            interrupt_status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
        })
    }

    /// Signalled for each interrupt.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Signalled when the driver notifies a queue, in index order.
    pub fn queues(&self) -> &[EventFd] {
        &self.queues
    }

    /// InterruptStatus.
    pub fn status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    /// A write to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// ConfigGeneration.
    pub fn generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// The driver's notification of queue `index`; one that does not exist is ignored.
    pub fn notify_queue(&self, index: u32) {
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get(index));
        if let Some(eventfd) = queue {
            signal(eventfd);
        }
    }

    /// Back to the state after reset. The generation stays: it only ever has to differ.
    pub fn reset(&self) {
        self.interrupt_status.store(0, Ordering::SeqCst);
    }

    /// Loads saved registers. A pending interrupt is raised again and each queue looked at, because what
    /// the eventfds held is not saved.
    pub fn restore(&self, status: u32, generation: u32) {
        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        self.interrupt_status.store(status & known, Ordering::SeqCst);
        self.config_generation.store(generation, Ordering::SeqCst);
        self.reassert();
        self.queues.iter().for_each(signal);
    }

    /// Raises the interrupt again while it is not acknowledged.
    pub fn reassert(&self) {
        if self.status() != 0 {
            signal(&self.irq);
        }
    }

    fn raise(&self, bit: u32) {
        self.interrupt_status.fetch_or(bit, Ordering::SeqCst);
        signal(&self.irq);
    }
}

impl Interrupt for Lines {
    fn notify_used(&self, _queue: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn notify_config(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn reschedule(&self, queue: u16) {
        self.notify_queue(queue.into());
    }
}

/// A write to a non-blocking eventfd fails only when its counter is full: then it is signalled already.
fn signal(eventfd: &EventFd) {
    let _ = eventfd.write(1);
}
