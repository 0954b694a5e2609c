//! The serial port, written without looking: both VMMs take each byte at once.

const PORT: u16 = 0x3f8;

/// Writes text.
pub fn put(text: &[u8]) {
    for &byte in text {
        // SAFETY: the port is the serial port's data register; IOPL is 3.
        unsafe { core::arch::asm!("out dx, al", in("dx") PORT, in("al") byte, options(nomem, nostack)) };
    }
}

/// Writes ` name=value`.
pub fn put_number(name: &str, value: u64) {
    put(b" ");
    put(name.as_bytes());
    put(b"=");
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    put(&digits[at..]);
}

/// The result of a measured loop: one line.
pub fn report(operations: u64, cycles: u64, notifications: u64) {
    put(b"micro-guest: result");
    put_number("operations", operations);
    put_number("cycles", cycles);
    put_number("notifications", notifications);
    put(b"\n");
}
