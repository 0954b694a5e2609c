//! What the loader left: the command line, with the test and its numbers as `micro.NAME=VALUE`.

use crate::{fail, memory};

/// Offset of the command line's address in Linux' zero page (`cmd_line_ptr`).
const LINUX_CMDLINE: u64 = 0x228;
/// The same in PVH's `hvm_start_info`.
const PVH_CMDLINE: u64 = 0x18;
const MAX_CMDLINE: usize = 2048;

/// The command line.
pub struct Options {
    text: [u8; MAX_CMDLINE],
}

impl Options {
    /// Copies the command line.
    pub fn read(boot: u64, pvh: bool) -> Self {
        let at: u64 = if pvh {
            memory::read(boot + PVH_CMDLINE)
        } else {
            memory::read::<u32>(boot + LINUX_CMDLINE).into()
        };
        let mut text = [b' '; MAX_CMDLINE];
        for (index, byte) in text.iter_mut().enumerate() {
            let value: u8 = memory::read(at + index as u64);
            if value == 0 {
                break;
            }
            *byte = value;
        }
        Self { text }
    }

    /// What follows `name` up to the next space.
    pub fn word(&self, name: &str) -> &[u8] {
        self.text
            .split(|byte| *byte == b' ')
            .find_map(|word| word.strip_prefix(name.as_bytes()))
            .unwrap_or_else(|| fail(name))
    }

    /// The same as a number, decimal or with 0x.
    pub fn number(&self, name: &str) -> u64 {
        let word = self.word(name);
        let (digits, radix) = match word.strip_prefix(b"0x") {
            Some(digits) => (digits, 16),
            None => (word, 10),
        };
        digits.iter().fold(0, |value, &byte| {
            let digit = (byte as char).to_digit(radix as u32).unwrap_or_else(|| fail(name));
            value * radix + u64::from(digit)
        })
    }
}
