//! Ports and register files that are no virtio device: serial, i8042, keyboard, power, generation, I/O APIC.

use std::sync::Arc;

use ::devices::bus::BusDevice;
use ::devices::generation::{Generation, Renewal};
use ::devices::i8042::I8042;
use ::devices::ioapic::{IOAPIC_PINS, Ioapic, Msi, MsiRouter};
use ::devices::keyboard::Keyboard;
use ::devices::power::{PowerPort, PowerSink};
use ::devices::serial::{ConsoleLog, Serial};
use ::devices::virtio::testing::guest_ram;

use crate::bytes::Bytes;

/// Accesses of one input.
const MAX_STEPS: usize = 512;

struct Nobody;

impl PowerSink for Nobody {
    fn power_off(&self) {}
    fn reset(&self) {}
}

impl MsiRouter for Nobody {
    fn update(&self, gsi: u32, _: Option<Msi>) {
        assert!((gsi as usize) < IOAPIC_PINS, "a route for pin {gsi}");
    }
    fn update_all(&self, _: [Option<Msi>; IOAPIC_PINS]) {}
    fn resample(&self, gsi: u32) {
        assert!((gsi as usize) < IOAPIC_PINS, "pin {gsi} again");
    }
}

/// Accesses of any width at any offset, of what else happens to these devices, and of their saved states.
pub fn run(bytes: &[u8]) {
    let mut input = Bytes::new(bytes);
    let nobody = Arc::new(Nobody);
    let ioapic = Ioapic::new(nobody.clone());
    let generation = Generation::new();
    let serial = Serial::open(ConsoleLog::new(std::io::sink())).unwrap();
    let keyboard = Keyboard::open(nobody.clone()).unwrap();
    let (i8042, power) = (I8042::new(nobody.clone()), PowerPort::new(nobody));
    let devices: [&dyn BusDevice; 6] = [&ioapic, &generation, &serial, &keyboard, &i8042, &power];
    let memory = guest_ram(1 << 20);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.u8();
        let device = devices[usize::from(step & 7) % devices.len()];
        let (offset, width) = (u64::from(input.u16()) % 0x1000, usize::from(input.u8() % 9));
        match step >> 4 {
            0..=6 => device.write(offset, input.take(width)),
            7..=11 => device.read(offset, &mut vec![0; width]),
            12 => ioapic.end_of_interrupt(input.u8()),
            13 => {
                keyboard.ctrl_alt_del();
            }
            14 => {
                let renewal = Renewal { id: [7; 32], saved_tsc: 1, tsc: 2, real_ns: 3, paused_ns: 4 };
                generation.renew(&memory, &renewal);
            }
            _ => {
                ioapic.restore(&ioapic.state());
                generation.restore(generation.state());
                let _ = Serial::restore(&serial.state(), ConsoleLog::new(std::io::sink()));
            }
        }
    }
}
