//! The kernel command line: built from words, bounded, written as a C string.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{CMDLINE, CMDLINE_MAX, VIRTIO_MMIO_SIZE, virtio_mmio_address, virtio_mmio_gsi};

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// Longer than the kernel takes.
    #[error("the command line has {len} bytes, the kernel takes at most {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The longest one allowed.
        max: usize,
    },
    /// It holds a byte that would end or garble it.
    #[error("the command line holds the byte {byte:#04x}; only printable ASCII is possible")]
    BadByte {
        /// The first such byte.
        byte: u8,
    },
}

/// A command line under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline(String);

impl Cmdline {
    /// Appends `words`, separated by a space from what is there. Empty words are nothing.
    pub fn push(&mut self, words: &str) -> &mut Self {
        let words = words.trim_matches(' ');
        if !words.is_empty() {
            if !self.0.is_empty() {
                self.0.push(' ');
            }
            self.0.push_str(words);
        }
        self
    }

    /// Announces the virtio-mmio device of slot `slot`.
    pub fn push_virtio_mmio(&mut self, slot: usize) -> &mut Self {
        let size = VIRTIO_MMIO_SIZE >> 10;
        let device =
            format!("virtio_mmio.device={size}K@{:#x}:{}", virtio_mmio_address(slot), virtio_mmio_gsi(slot));
        self.push(&device)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks the text against `max` bytes, terminating zero included.
    pub fn check(&self, max: usize) -> Result<(), CmdlineError> {
        let max = max.min(CMDLINE_MAX).saturating_sub(1);
        if self.0.len() > max {
            return Err(CmdlineError::TooLong { len: self.0.len(), max });
        }
        match self.0.bytes().find(|byte| !(0x20..0x7f).contains(byte)) {
            Some(byte) => Err(CmdlineError::BadByte { byte }),
            None => Ok(()),
        }
    }

    /// Writes it with its terminating zero at [`CMDLINE`]; checked before.
    pub fn write<M: GuestMemoryBackend>(&self, mem: &M) -> Result<(), GuestMemoryError> {
        mem.write_slice(self.0.as_bytes(), GuestAddress(CMDLINE))?;
        mem.write_obj(0_u8, GuestAddress(CMDLINE + self.0.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_devices_are_separated_by_one_space() {
        let mut line = Cmdline::default();
        line.push("console=ttyS0 ").push("").push(" quiet").push_virtio_mmio(1);
        assert_eq!(line.as_str(), "console=ttyS0 quiet virtio_mmio.device=4K@0xd0001000:6");
    }

    #[test]
    fn length_and_bytes_are_checked() {
        let mut line = Cmdline::default();
        line.push(&"a".repeat(CMDLINE_MAX - 1));
        assert_eq!(line.check(CMDLINE_MAX), Ok(()));
        assert_eq!(line.check(100), Err(CmdlineError::TooLong { len: CMDLINE_MAX - 1, max: 99 }));
        line.push("b");
        assert_eq!(
            line.check(usize::MAX),
            Err(CmdlineError::TooLong { len: CMDLINE_MAX + 1, max: CMDLINE_MAX - 1 })
        );
        let mut odd = Cmdline::default();
        odd.push("a\nb");
        assert_eq!(odd.check(CMDLINE_MAX), Err(CmdlineError::BadByte { byte: b'\n' }));
    }
}
