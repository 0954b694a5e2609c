//! The one thing that x86 guests use a keyboard controller for without a keyboard: to reset.
//!
//! Only the command and status port at [`I8042_PORT`] is there. The guest controls the byte written.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::power::PowerSink;

/// I/O port of the command and status register, one byte wide.
pub const I8042_PORT: u64 = 0x64;

/// Command that pulses the processor's reset line.
const RESET_COMMAND: u8 = 0xfe;

/// The controller's command port.
pub struct I8042 {
    sink: Arc<dyn PowerSink>,
}

impl I8042 {
    /// A controller that reports a reset to `sink`.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for I8042 {
    /// Status: both buffers empty, so that a driver waits for nothing before it writes a command.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [RESET_COMMAND] {
            self.sink.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::tests::Recorder;

    #[test]
    fn the_reset_command_resets_and_no_other_does() {
        let sink = Arc::new(Recorder::default());
        let controller = I8042::new(sink.clone());
        for command in (0..=0xff).filter(|&command| command != RESET_COMMAND) {
            controller.write(0, &[command]);
        }
        controller.write(0, &[RESET_COMMAND, 0]);
        assert!(sink.0.lock().unwrap().is_empty());
        controller.write(0, &[RESET_COMMAND]);
        assert_eq!(*sink.0.lock().unwrap(), ["reset"]);
    }

    #[test]
    fn status_says_that_a_command_can_be_written() {
        let mut status = [0xff];
        I8042::new(Arc::new(Recorder::default())).read(0, &mut status);
        assert_eq!(status, [0]);
    }
}
