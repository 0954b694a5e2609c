//! The register file as a driver sees it, with a device that echoes.

use std::sync::mpsc;

use virtio_queue::QueueState;

use super::*;
use crate::virtio::device::RestoreError;
use crate::virtio::queue::ActiveQueue;
use crate::virtio::testing::{BUFFERS, Buffer, EVENT_IDX, FakeDriver, VERSION_1, register, status};

const FEATURES: u64 = VERSION_1 | EVENT_IDX | 1;

/// Completes each chain with its number of descriptors; a chain of three breaks the protocol.
#[derive(Default)]
struct Echo {
    active: Option<(GuestRam, Vec<ActiveQueue>)>,
    config: [u8; 8],
    saved: u32,
}

impl VirtioDevice for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn device_id(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(self.config.iter().skip(offset as usize)) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (value, byte) in self.config.iter_mut().skip(offset as usize).zip(data) {
            *value = *byte;
        }
        if let Some((_, queues)) = &self.active {
            assert_eq!(queues.len(), 2);
        }
    }

    fn activate(&mut self, activation: Activation) {
        let queues = ActiveQueue::all(activation.queues, &activation.interrupt);
        self.active = Some((activation.mem, queues));
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn process_queue(&mut self, index: u16) -> Result<(), ProtocolViolation> {
        let Some((mem, queues)) = &mut self.active else {
            return Ok(());
        };
        self.saved += 1;
        queues[usize::from(index)].process(mem, |chain| match chain.count() {
            3 => Err(ProtocolViolation { queue: index, what: "three descriptors".into() }),
            count => Ok(count as u32),
        })
    }

    fn host_events(&self) -> Vec<HostEvent> {
        vec![HostEvent { fd: 0, events: EventSet::IN, token: 7 }]
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active.iter().flat_map(|(_, queues)| queues.iter().map(ActiveQueue::state)).collect()
    }

    fn save(&self) -> Vec<u8> {
        self.saved.to_le_bytes().to_vec()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let bytes = state.try_into().map_err(|_| RestoreError { device: "echo", what: "length".into() })?;
        self.saved = u32::from_le_bytes(bytes);
        Ok(())
    }
}

fn buffers(count: u64) -> Vec<Buffer> {
    (0..count).map(|index| Buffer::readable(BUFFERS + 16 * index, 16)).collect()
}

#[test]
fn identification_registers_have_the_values_of_the_specification() {
    let driver = FakeDriver::new(Echo::default());
    assert_eq!(driver.read(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(register::VERSION), 2);
    assert_eq!(driver.read(register::DEVICE_ID), 42);
    assert_eq!(driver.offered(), FEATURES);
    driver.write(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
    driver.write(register::DEVICE_FEATURES_SEL, u32::MAX);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
    for half in 0..4 {
        assert_eq!(driver.read(register::SHARED_MEMORY_LEN_LOW + 4 * half), u32::MAX);
    }
    for (queue, size) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        driver.write(register::QUEUE_SEL, queue);
        assert_eq!(driver.read(register::QUEUE_NUM_MAX), size, "{queue}");
    }
}

#[test]
fn a_driver_that_keeps_to_the_order_gets_an_active_device() {
    let mut driver = FakeDriver::start(Echo::default(), FEATURES);
    assert_eq!(driver.observed.take(), ["test: host events", "test: host events", "test: ready"]);
    for (queue, count) in [(0, 2), (1, 1), (0, 4)] {
        let head = driver.submit(queue, &buffers(count));
        assert_eq!(driver.take_used(queue), Some((head, count as u32)));
    }
    assert_eq!(driver.transport.violations(), 0);
}

#[test]
fn interrupts_are_raised_and_acknowledged() {
    let mut driver = FakeDriver::start(Echo::default(), 0);
    assert!(!driver.take_interrupt());
    driver.submit(0, &buffers(1));
    assert!(driver.take_interrupt());
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
    driver.transport.reassert_interrupt();
    assert!(driver.take_interrupt());
    driver.write(register::INTERRUPT_ACK, 2);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
    driver.write(register::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    driver.transport.reassert_interrupt();
    assert!(!driver.take_interrupt());
}

#[test]
fn accesses_of_another_width_or_place_do_nothing() {
    let driver = FakeDriver::new(Echo::default());
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (0x48, 4), (0xfd, 4)] {
        let mut data = vec![0xaa; len];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x}");
    }
    driver.transport.write(register::STATUS, &[1]);
    driver.transport.write(register::STATUS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.read(register::STATUS), 0);
}

#[test]
fn configuration_space_takes_any_width() {
    let driver = FakeDriver::new(Echo::default());
    driver.transport.write(register::CONFIG + 1, &[1, 2, 3]);
    driver.transport.write(register::CONFIG + 7, &[9, 9]);
    let mut data = [0xaa; 12];
    driver.transport.read(register::CONFIG, &mut data);
    assert_eq!(data, [0, 1, 2, 3, 0, 0, 0, 9, 0, 0, 0, 0]);
    driver.transport.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 12]);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for accepted in [VERSION_1 | 2, 1, 0, u64::MAX] {
        let driver = FakeDriver::new(Echo::default());
        driver.add_status(status::ACKNOWLEDGE);
        driver.add_status(status::DRIVER);
        driver.accept(accepted);
        driver.add_status(status::FEATURES_OK);
        assert_eq!(driver.read(register::STATUS), 3, "{accepted:#x}");
    }
}

#[test]
fn queues_outside_guest_memory_break_the_protocol() {
    let cases: [(u64, u32); 8] = [
        (register::QUEUE_DESC_LOW + 4, 1),
        (register::QUEUE_DESC_LOW, 8),
        (register::QUEUE_DRIVER_LOW, 0),
        (register::QUEUE_DRIVER_LOW, 1),
        (register::QUEUE_DEVICE_LOW, 2),
        (register::QUEUE_DEVICE_LOW + 4, u32::MAX),
        (register::QUEUE_NUM, 3),
        (register::QUEUE_NUM, 1 << 20),
    ];
    for (offset, value) in cases {
        let driver = FakeDriver::new(Echo::default());
        driver.add_status(status::ACKNOWLEDGE);
        driver.add_status(status::DRIVER);
        driver.accept(VERSION_1);
        driver.add_status(status::FEATURES_OK);
        driver.set_up_queue(0);
        driver.write(register::QUEUE_READY, 0);
        driver.write(offset, value);
        driver.write(register::QUEUE_READY, 1);
        driver.add_status(status::DRIVER_OK);
        let after = driver.read(register::STATUS);
        assert_eq!(after, 0xf | status::NEEDS_RESET, "{offset:#x} {value:#x}");
        assert_eq!(driver.transport.violations(), 1);
        assert_eq!(driver.read(register::INTERRUPT_STATUS), 2);
        driver.notify(0);
    }
}

#[test]
fn a_queue_that_is_ready_or_in_use_cannot_be_moved() {
    let mut driver = FakeDriver::new(Echo::default());
    driver.set_up_queue(0);
    assert_eq!(driver.read(register::QUEUE_READY), 0, "no negotiation yet");
    driver.initialize(0);
    driver.write(register::QUEUE_SEL, 0);
    driver.write(register::QUEUE_DESC_LOW, 0xdead_0000);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 1);
    let head = driver.submit(0, &buffers(1));
    assert_eq!(driver.take_used(0), Some((head, 1)));
}

#[test]
fn an_unused_queue_is_no_violation() {
    let driver = FakeDriver::new(Echo::default());
    driver.add_status(status::ACKNOWLEDGE);
    driver.add_status(status::DRIVER);
    driver.accept(VERSION_1);
    driver.add_status(status::FEATURES_OK);
    driver.add_status(status::DRIVER_OK);
    driver.notify(0);
    driver.notify(1);
    driver.notify(500);
    assert_eq!(driver.read(register::STATUS), 0xf);
}

#[test]
fn a_violation_stops_the_device_until_reset() {
    let mut driver = FakeDriver::start(Echo::default(), 0);
    driver.observed.take();
    driver.submit(0, &buffers(3));
    assert_eq!(driver.read(register::STATUS), 0xf | status::NEEDS_RESET);
    assert_eq!(driver.read(register::INTERRUPT_STATUS) & 2, 2);
    assert_eq!(driver.read(register::CONFIG_GENERATION), 1);
    let report = "test: violation 1: protocol violation on queue 0: three descriptors";
    assert_eq!(driver.observed.take(), [report, "test: host events"]);
    assert!(driver.transport.take_host_events().unwrap().is_empty());
    driver.submit(0, &buffers(1));
    assert_eq!(driver.take_used(0), None);
    driver.add_status(status::DRIVER_OK);
    driver.add_status(status::FAILED);
    assert_eq!(driver.read(register::STATUS), 0xf | status::NEEDS_RESET);

    driver.write(register::STATUS, 0);
    assert_eq!(driver.read(register::STATUS), 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(driver.initialize(0), 0xf);
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let mut driver = FakeDriver::start(Echo::default(), 0);
    driver.transport.take_host_events();
    driver.add_status(status::FAILED);
    assert!(driver.transport.take_host_events().unwrap().is_empty(), "nothing to poll any more");
    driver.submit(0, &buffers(1));
    assert_eq!(driver.take_used(0), None);
    assert_eq!(driver.read(register::STATUS), 0xf | status::FAILED);
}

#[test]
fn reports_of_violations_thin_out() {
    let mut reports = 0;
    let mut driver = FakeDriver::new(Echo::default());
    for _ in 0..100 {
        driver.initialize(0);
        driver.submit(0, &buffers(3));
        reports += driver.observed.take().iter().filter(|line| line.contains("violation")).count();
    }
    assert_eq!(driver.transport.violations(), 100);
    assert_eq!(reports, 7);
}

#[test]
fn host_events_are_those_of_an_active_device() {
    let mut driver = FakeDriver::new(Echo::default());
    assert!(driver.transport.take_host_events().is_none());
    driver.initialize(0);
    assert_eq!(driver.transport.take_host_events().unwrap()[0].token, 7);
    assert!(driver.transport.take_host_events().is_none());
    driver.write(register::STATUS, 0);
    assert!(driver.transport.take_host_events().unwrap().is_empty());
}

/// Waits in `process_queue` until somebody lets it go on.
struct Busy {
    entered: mpsc::Sender<()>,
    leave: mpsc::Receiver<()>,
}

impl VirtioDevice for Busy {
    fn name(&self) -> &'static str {
        "busy"
    }

    fn device_id(&self) -> u32 {
        43
    }

    fn queue_sizes(&self) -> &[u16] {
        &[4]
    }

    fn features(&self) -> u64 {
        VERSION_1
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) {
        activation.interrupt.notify_used(0);
    }

    fn reset(&mut self) {}

    fn process_queue(&mut self, _: u16) -> Result<(), ProtocolViolation> {
        self.entered.send(()).unwrap();
        self.leave.recv().unwrap();
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        Vec::new()
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[test]
fn the_interrupt_handler_does_not_wait_for_a_busy_device() {
    let (entered, has_entered) = mpsc::channel();
    let (let_go, leave) = mpsc::channel();
    let driver = FakeDriver::start(Busy { entered, leave }, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| driver.transport.process_queue(0));
        has_entered.recv().unwrap();
        // With the lock taken here this test would never end.
        assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
        driver.write(register::INTERRUPT_ACK, 1);
        driver.write(register::QUEUE_NOTIFY, 0);
        assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
        assert_eq!(driver.transport.queue_notifiers()[0].read().unwrap(), 1);
        let_go.send(()).unwrap();
    });
}

#[test]
fn random_register_accesses_leave_a_transport_that_can_be_reset() {
    let mut driver = FakeDriver::new(Echo::default());
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..200 {
        for _ in 0..200 {
            let offset = 4 * random(0x42);
            let value = [random(16), random(1 << 24), random(1 << 32)][random(3) as usize] as u32;
            driver.write(offset, value);
            driver.read(4 * random(0x42));
            driver.run();
        }
        assert_eq!(driver.initialize(FEATURES), 0xf);
        let head = driver.submit(1, &buffers(2));
        assert_eq!(driver.take_used(1), Some((head, 2)));
    }
}

#[test]
fn a_running_device_survives_a_snapshot() {
    let mut driver = FakeDriver::start(Echo::default(), FEATURES);
    driver.submit(0, &buffers(1));
    driver.queues[0].add(&buffers(2));
    let state = driver.transport.save().unwrap();

    let restored = FakeDriver::with_mem(Echo::default(), driver.mem.clone());
    restored.transport.restore(&state).unwrap();
    assert!(restored.take_interrupt(), "the first interrupt was not acknowledged");
    assert!(restored.transport.take_host_events().is_some());
    restored.run();
    assert_eq!(driver.take_used(0).unwrap().1, 1);
    assert_eq!(driver.take_used(0).unwrap().1, 2);
    assert_eq!(restored.read(register::STATUS), 0xf);
}

#[test]
fn an_idle_device_survives_a_snapshot() {
    let driver = FakeDriver::new(Echo::default());
    driver.add_status(status::ACKNOWLEDGE);
    let state = driver.transport.save().unwrap();
    let mut restored = FakeDriver::new(Echo::default());
    restored.transport.restore(&state).unwrap();
    assert_eq!(restored.read(register::STATUS), 1);
    assert_eq!(restored.initialize(0), 0xf);
}

#[test]
fn broken_states_are_refused_without_harm() {
    let mut driver = FakeDriver::start(Echo::default(), FEATURES);
    driver.submit(0, &buffers(1));
    let state = driver.transport.save().unwrap();
    for len in 0..state.len() {
        let fresh = FakeDriver::new(Echo::default());
        assert!(fresh.transport.restore(&state[..len]).is_err(), "{len}");
    }
    for at in 0..state.len() {
        for bit in 0..8 {
            let mut broken = state.clone();
            broken[at] ^= 1 << bit;
            let fresh = FakeDriver::new(Echo::default());
            if fresh.transport.restore(&broken).is_ok() {
                fresh.run();
            }
        }
    }
}

#[test]
fn a_state_of_another_device_is_refused() {
    let driver = FakeDriver::start(Echo::default(), FEATURES);
    let state = driver.transport.save().unwrap();
    let other = FakeDriver::new(crate::virtio::rng::Rng::new());
    let error = other.transport.restore(&state).unwrap_err();
    assert_eq!(error.to_string(), "cannot restore rng: state is of device type 42");
}
