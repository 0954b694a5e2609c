//! A keyboard behind an i8042 controller, for the one thing that hosts type: Ctrl+Alt+Del.
//!
//! As much of the controller as Linux needs with `i8042.dumbkbd`, and the answer to a keyboard's own commands. The guest
//! controls each byte written; what it does not read is dropped beyond [`BUFFER`].

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::power::PowerSink;

/// First I/O port: data.
pub const KEYBOARD_PORT: u64 = 0x60;
/// Number of ports: data, four of others, command and status.
pub const KEYBOARD_SIZE: u64 = 5;

/// Offset of the command and status register.
const COMMAND: u64 = 4;
/// Bytes that wait for the guest. Stops one that never reads from growing the VMM.
const BUFFER: usize = 16;

/// Status: a byte waits for the guest.
const OUTPUT_FULL: u8 = 1;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 0x10;
/// Control: interrupt when a byte waits.
const INTERRUPT: u8 = 1;
/// Control after power-on: interrupts, system flag, no second port.
const CONTROL: u8 = 0x25;

const READ_CONTROL: u8 = 0x20;
const WRITE_CONTROL: u8 = 0x60;
const SELF_TEST: u8 = 0xaa;
const TEST_PORT: u8 = 0xab;
const READ_OUTPUT: u8 = 0xd0;
const WRITE_OUTPUT: u8 = 0xd1;
const RESET: u8 = 0xfe;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_WORKS: u8 = 0;
/// A keyboard's answer to any command.
const ACKNOWLEDGE: u8 = 0xfa;

/// Left Ctrl, left Alt and Delete going down, scan code set 2.
const CTRL_ALT_DEL: [u8; 4] = [0x14, 0x11, 0xe0, 0x71];

/// The controller with its keyboard.
pub struct Keyboard {
    sink: Arc<dyn PowerSink>,
    irq: EventFd,
    state: Mutex<State>,
}

struct State {
    control: u8,
    output_port: u8,
    /// A command that waits for its byte.
    pending: Option<u8>,
    buffer: VecDeque<u8>,
}

impl Keyboard {
    /// A controller that reports a reset to `sink`.
    pub fn open(sink: Arc<dyn PowerSink>) -> io::Result<Self> {
        let irq = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let state = State { control: CONTROL, output_port: 0, pending: None, buffer: VecDeque::new() };
        Ok(Self { sink, irq, state: Mutex::new(state) })
    }

    /// Signalled for each interrupt: to be registered as irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Presses the three keys; false if the guest has not read what came before.
    pub fn ctrl_alt_del(&self) -> bool {
        let mut state = self.lock();
        if state.buffer.len().saturating_add(CTRL_ALT_DEL.len()) > BUFFER {
            return false;
        }
        state.buffer.extend(CTRL_ALT_DEL);
        self.interrupt(&state);
        true
    }

    fn push(&self, state: &mut State, byte: u8) {
        if state.buffer.len() < BUFFER {
            state.buffer.push_back(byte);
        }
        self.interrupt(state);
    }

    fn interrupt(&self, state: &State) {
        if state.control & INTERRUPT != 0 && !state.buffer.is_empty() {
            // Fails only when it is signalled already.
            let _ = self.irq.write(1);
        }
    }

    fn command(&self, state: &mut State, command: u8) {
        state.pending = None;
        match command {
            READ_CONTROL => self.push(state, state.control),
            READ_OUTPUT => self.push(state, state.output_port),
            WRITE_CONTROL | WRITE_OUTPUT => state.pending = Some(command),
            SELF_TEST => self.push(state, SELF_TEST_PASSED),
            TEST_PORT => self.push(state, PORT_WORKS),
            RESET => self.sink.reset(),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Keyboard {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        let mut state = self.lock();
        match offset {
            0 => {
                *byte = state.buffer.pop_front().unwrap_or(0);
                self.interrupt(&state);
            }
            COMMAND => *byte = UNLOCKED | if state.buffer.is_empty() { 0 } else { OUTPUT_FULL },
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[byte] = data else { return };
        let mut state = self.lock();
        match (offset, state.pending.take()) {
            (0, Some(WRITE_CONTROL)) => state.control = byte,
            (0, Some(_)) => state.output_port = byte,
            (0, None) => self.push(&mut state, ACKNOWLEDGE),
            (COMMAND, _) => self.command(&mut state, byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::tests::Recorder;

    fn keyboard() -> (Keyboard, Arc<Recorder>) {
        let sink = Arc::new(Recorder::default());
        (Keyboard::open(sink.clone()).unwrap(), sink)
    }

    fn read(keyboard: &Keyboard, offset: u64) -> u8 {
        let mut byte = [0xff];
        keyboard.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn the_keys_are_read_one_by_one_with_an_interrupt_each() {
        let (keyboard, _) = keyboard();
        assert_eq!(read(&keyboard, COMMAND), UNLOCKED);
        assert!(keyboard.ctrl_alt_del());
        for code in CTRL_ALT_DEL {
            assert_eq!(keyboard.irq().read().unwrap(), 1);
            assert_eq!(read(&keyboard, COMMAND), UNLOCKED | OUTPUT_FULL);
            assert_eq!(read(&keyboard, 0), code);
        }
        assert!(keyboard.irq().read().is_err());
        assert_eq!(read(&keyboard, COMMAND), UNLOCKED);
    }

    #[test]
    fn a_guest_that_turned_interrupts_off_gets_none() {
        let (keyboard, _) = keyboard();
        keyboard.write(COMMAND, &[WRITE_CONTROL]);
        keyboard.write(0, &[CONTROL & !INTERRUPT]);
        keyboard.write(COMMAND, &[READ_CONTROL]);
        assert_eq!(read(&keyboard, 0), CONTROL & !INTERRUPT);
        assert!(keyboard.ctrl_alt_del());
        assert!(keyboard.irq().read().is_err());
    }

    #[test]
    fn tests_and_commands_are_answered() {
        let (keyboard, sink) = keyboard();
        for (command, answer) in [(SELF_TEST, SELF_TEST_PASSED), (TEST_PORT, PORT_WORKS), (READ_OUTPUT, 0)] {
            keyboard.write(COMMAND, &[command]);
            assert_eq!(read(&keyboard, 0), answer);
        }
        keyboard.write(0, &[0xed]);
        assert_eq!(read(&keyboard, 0), ACKNOWLEDGE);
        assert!(sink.0.lock().unwrap().is_empty());
        keyboard.write(COMMAND, &[RESET]);
        assert_eq!(*sink.0.lock().unwrap(), ["reset"]);
    }

    #[test]
    fn what_nobody_reads_is_dropped() {
        let (keyboard, _) = keyboard();
        for _ in 0..1000 {
            keyboard.write(0, &[0xff]);
            keyboard.write(COMMAND, &[READ_CONTROL]);
        }
        assert_eq!(keyboard.lock().buffer.len(), BUFFER);
        assert!(!keyboard.ctrl_alt_del());
        keyboard.write(0, &[1, 2]);
        let mut word = [0xff; 2];
        keyboard.read(0, &mut word);
        assert_eq!(word, [0; 2]);
    }
}
