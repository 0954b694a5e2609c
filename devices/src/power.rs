//! The port by which the guest powers itself off or resets, one byte at [`POWER_PORT`].
//!
//! There is no ACPI in the guest: our kernel's power-off handler writes here. The guest controls the byte.

use std::sync::Arc;

use crate::bus::BusDevice;

/// I/O port of the device, one byte wide.
pub const POWER_PORT: u64 = 0x600;

/// Written to power off.
const POWER_OFF: u8 = 1;
/// Written to reset.
const RESET: u8 = 2;

/// Hears that the guest wants to end. Called by a vCPU thread, perhaps more than once; must not block.
pub trait PowerSink: Send + Sync {
    /// The guest powered off.
    fn power_off(&self);
    /// The guest asked for a reset.
    fn reset(&self);
}

/// The power port.
pub struct PowerPort {
    sink: Arc<dyn PowerSink>,
}

impl PowerPort {
    /// A port that reports to `sink`.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for PowerPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        match data {
            [POWER_OFF] => self.sink.power_off(),
            [RESET] => self.sink.reset(),
            _ => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Notes what was asked for.
    #[derive(Default)]
    pub(crate) struct Recorder(pub(crate) Mutex<Vec<&'static str>>);

    impl PowerSink for Recorder {
        fn power_off(&self) {
            self.0.lock().unwrap().push("power off");
        }

        fn reset(&self) {
            self.0.lock().unwrap().push("reset");
        }
    }

    #[test]
    fn only_the_two_known_bytes_do_anything() {
        let sink = Arc::new(Recorder::default());
        let port = PowerPort::new(sink.clone());
        for data in [&[][..], &[0], &[3], &[0xff], &[1, 0], &[2, 0, 0, 0]] {
            port.write(0, data);
        }
        assert!(sink.0.lock().unwrap().is_empty());
        port.write(0, &[1]);
        port.write(0, &[2]);
        assert_eq!(*sink.0.lock().unwrap(), ["power off", "reset"]);
    }
}
