//! The guest's serial console: a 16550A at [`SERIAL_PORT`] whose output goes to a log and nowhere else.
//!
//! The guest controls each byte and how many there are. A console log that grows without bound is a full
//! disk, so [`ConsoleLog`] stops at a limit, and a sink that fails or is full loses bytes rather than time.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, SerialState as Registers};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::rate::{BucketConfig, TokenBucket};

/// First I/O port of the device (COM1).
pub const SERIAL_PORT: u64 = 0x3f8;
/// Number of ports.
pub const SERIAL_SIZE: u64 = 8;

/// Bytes that a console log takes at most. Stops a guest that prints for ever from filling the disk.
pub const MAX_CONSOLE_BYTES: u64 = 16 << 20;
/// Bytes kept back until the line ends. Stops a guest that never ends its line from growing the buffer.
const MAX_LINE_BYTES: usize = 512;
/// Last line of a log that reached its limit.
const TRUNCATED: &[u8] = b"\n[console log is full: the rest is dropped]\n";

type Uart<W> = vm_superio::Serial<Interrupt, NoEvents, W>;

/// The serial port. Its output is written to `W`, whose `write` must not block.
pub struct Serial<W: Write + Send> {
    irq: EventFd,
    uart: Mutex<Uart<W>>,
}

/// What a snapshot keeps of a [`Serial`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SerialState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// A saved serial port does not fit.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// An eventfd could not be opened.
    #[error("open the serial port's eventfd")]
    OpenEventFd(#[source] io::Error),
    /// The state was not made by [`Serial::state`].
    #[error("saved serial port has {0} bytes in its input buffer")]
    InvalidState(usize),
}

impl<W: Write + Send> Serial<W> {
    /// A serial port after reset.
    pub fn open(out: W) -> Result<Self, SerialError> {
        Self::build(&Registers::default(), out)
    }

    /// A serial port as it was saved.
    pub fn restore(state: &SerialState, out: W) -> Result<Self, SerialError> {
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        let registers = Registers {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        };
        Self::build(&registers, out)
    }

    /// For a snapshot.
    pub fn state(&self) -> SerialState {
        let registers = self.lock().state();
        SerialState {
            baud_divisor: [registers.baud_divisor_low, registers.baud_divisor_high],
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            in_buffer: registers.in_buffer,
        }
    }

    /// Signalled for each interrupt: to be registered as irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    fn build(registers: &Registers, out: W) -> Result<Self, SerialError> {
        let irq = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(SerialError::OpenEventFd)?;
        let trigger = Interrupt(irq.try_clone().map_err(SerialError::OpenEventFd)?);
        let uart = Uart::from_state(registers, trigger, NoEvents, out)
            .map_err(|_| SerialError::InvalidState(registers.in_buffer.len()))?;
        Ok(Self { irq, uart: Mutex::new(uart) })
    }

    fn lock(&self) -> MutexGuard<'_, Uart<W>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers are one byte wide; wider accesses read all ones and write nothing.
impl<W: Write + Send> BusDevice for Serial<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let ([byte], Ok(register)) = (data, u8::try_from(offset)) {
            *byte = self.lock().read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(register)) = (data, u8::try_from(offset)) {
            // Output that cannot be written is lost: the guest must not wait for a log.
            let _ = self.lock().write(register, byte);
        }
    }
}

/// The interrupt line as vm-superio wants it.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    /// A write to a non-blocking eventfd fails only when it is signalled already.
    fn trigger(&self) -> io::Result<()> {
        let _ = self.0.write(1);
        Ok(())
    }
}

/// A sink for the console that writes whole lines and stops at a limit.
///
/// `flush` does nothing, because the serial port calls it after each byte: what is left is written when the
/// line ends, and when the log is dropped.
pub struct ConsoleLog<W: Write> {
    out: W,
    line: Vec<u8>,
    /// Bytes that may still be written.
    left: u64,
    /// What is over it is dropped.
    bucket: Option<TokenBucket>,
}

impl<W: Write> ConsoleLog<W> {
    /// A log in `out` of at most [`MAX_CONSOLE_BYTES`].
    pub fn new(out: W) -> Self {
        Self::with_limit(out, MAX_CONSOLE_BYTES)
    }

    /// One that takes no more bytes than `rate` lets pass, and drops the others.
    pub fn at_rate(out: W, rate: &BucketConfig) -> Self {
        let bucket = TokenBucket::new(rate, Instant::now());
        Self { out, line: Vec::new(), left: MAX_CONSOLE_BYTES, bucket }
    }

    fn with_limit(out: W, left: u64) -> Self {
        Self { out, line: Vec::new(), left, bucket: None }
    }

    fn push(&mut self, byte: u8) {
        if let Some(bucket) = &mut self.bucket {
            if !bucket.wait(Instant::now()).is_zero() {
                // The end of its line may be among what is dropped.
                if !self.line.is_empty() {
                    self.write_line();
                }
                return;
            }
            bucket.take(1);
        }
        let Some(left) = self.left.checked_sub(1) else {
            return;
        };
        self.left = left;
        self.line.push(byte);
        if left == 0 {
            self.line.extend_from_slice(TRUNCATED);
        }
        if left == 0 || byte == b'\n' || self.line.len() >= MAX_LINE_BYTES {
            self.write_line();
        }
    }

    /// A log that cannot be written loses the line; the guest goes on.
    fn write_line(&mut self) {
        let _ = self.out.write_all(&self.line);
        self.line.clear();
    }
}

impl<W: Write> Write for ConsoleLog<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        data.iter().for_each(|&byte| self.push(byte));
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Drop for ConsoleLog<W> {
    fn drop(&mut self) {
        self.write_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const MODEM_CONTROL: u64 = 4;
    const LINE_STATUS: u64 = 5;
    const SCRATCH: u64 = 7;
    const LOOPBACK: u8 = 0x10;

    fn read(serial: &Serial<impl Write + Send>, register: u64) -> u8 {
        let mut byte = [0];
        serial.read(register, &mut byte);
        byte[0]
    }

    fn print(serial: &Serial<impl Write + Send>, text: &[u8]) {
        text.iter().for_each(|&byte| serial.write(DATA, &[byte]));
    }

    #[test]
    fn output_goes_to_the_sink_and_the_transmitter_is_always_empty() {
        let mut out = Vec::new();
        {
            let serial = Serial::open(ConsoleLog::new(&mut out)).unwrap();
            print(&serial, b"hello\nworld");
            assert_eq!(read(&serial, LINE_STATUS), 0x60);
        }
        assert_eq!(out, b"hello\nworld");
    }

    #[test]
    fn bytes_over_the_rate_are_dropped() {
        let mut out = Vec::new();
        {
            let rate = BucketConfig { size: 4, one_time_burst: 2, refill_time_ms: 3_600_000 };
            let serial = Serial::open(ConsoleLog::at_rate(&mut out, &rate)).unwrap();
            print(&serial, b"hello world");
        }
        assert_eq!(out, b"hello ");
    }

    #[test]
    fn a_driver_that_waits_for_the_transmitter_is_interrupted() {
        let serial = Serial::open(io::sink()).unwrap();
        print(&serial, b"x");
        assert!(serial.irq().read().is_err());
        serial.write(INTERRUPT_ENABLE, &[2]);
        assert_eq!(serial.irq().read().unwrap(), 1);
    }

    #[test]
    fn wide_accesses_do_nothing() {
        let mut out = Vec::new();
        let serial = Serial::open(&mut out).unwrap();
        serial.write(DATA, b"ab");
        serial.write(0x100, b"a");
        let mut word = [0; 2];
        serial.read(DATA, &mut word);
        assert_eq!(word, [0xff; 2]);
        drop(serial);
        assert!(out.is_empty());
    }

    #[test]
    fn a_log_stops_at_its_limit_and_says_so() {
        let mut out = Vec::new();
        let mut log = ConsoleLog::with_limit(&mut out, 10);
        log.write_all(b"12345\n789012345\n").unwrap();
        drop(log);
        assert_eq!(out, [b"12345\n7890", TRUNCATED].concat());
    }

    #[test]
    fn a_line_without_end_is_written_in_pieces() {
        let mut out = Vec::new();
        let mut log = ConsoleLog::new(&mut out);
        log.write_all(&[b'x'; MAX_LINE_BYTES + 1]).unwrap();
        assert_eq!(log.line.len(), 1);
        drop(log);
        assert_eq!(out.len(), MAX_LINE_BYTES + 1);
    }

    #[test]
    fn a_sink_that_fails_does_not_disturb_the_guest() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::WouldBlock.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let serial = Serial::open(ConsoleLog::new(Broken)).unwrap();
        print(&serial, b"lost\n");
        assert_eq!(read(&serial, LINE_STATUS), 0x60);
    }

    #[test]
    fn state_survives_a_snapshot() {
        let serial = Serial::open(io::sink()).unwrap();
        serial.write(SCRATCH, &[0x5a]);
        serial.write(MODEM_CONTROL, &[LOOPBACK]);
        print(&serial, &[b'z'; 100]);
        let bytes = postcard::to_allocvec(&serial.state()).unwrap();
        let restored = Serial::restore(&postcard::from_bytes(&bytes).unwrap(), io::sink()).unwrap();
        assert_eq!(restored.state(), serial.state());
        assert_eq!(read(&restored, SCRATCH), 0x5a);
        assert_eq!(read(&restored, DATA), b'z');
    }

    #[test]
    fn a_saved_input_buffer_that_is_too_long_is_refused() {
        let mut state = Serial::open(io::sink()).unwrap().state();
        state.in_buffer = vec![0; 65];
        let error = Serial::restore(&state, io::sink()).err().unwrap();
        assert!(matches!(error, SerialError::InvalidState(65)), "{error}");
    }
}
