//! The stream of file data into an image: block-aligned, in few large writes, holes left unwritten.

use super::output::Output;
use super::tree::Extent;
use super::{BLOCK_SIZE, Error};

/// Bytes gathered before they are written.
const BUFFER_SIZE: usize = 1 << 20;

/// A gap up to this many bytes is filled with zeros instead of starting another write.
const MAX_FILLED_GAP: u64 = 64 << 10;

/// Zeros are left as a hole if at least this many come in a row.
const MIN_HOLE: usize = 64 << 10;

/// Writes file data from block 1 on; block 0 is the superblock's.
pub struct DataWriter<'a, O: Output> {
    output: &'a mut O,
    next_block: u64,
    buffer: Vec<u8>,
    /// Where in the image the buffer's first byte belongs.
    buffer_offset: u64,
}

impl<'a, O: Output> DataWriter<'a, O> {
    /// Starts an image on `output`, which must be empty.
    pub fn new(output: &'a mut O) -> Self {
        Self { output, next_block: 1, buffer: Vec::with_capacity(BUFFER_SIZE), buffer_offset: BLOCK_SIZE }
    }

    /// Sets blocks apart for a file of `size` bytes, all of which read as zeros until written.
    pub fn reserve(&mut self, size: u64) -> Result<Extent, Error> {
        let first_block = u32::try_from(self.next_block).map_err(|_| Error::TooLarge)?;
        let end = self.next_block.checked_add(size.div_ceil(BLOCK_SIZE)).ok_or(Error::TooLarge)?;
        if end > u64::from(u32::MAX) {
            return Err(Error::TooLarge);
        }
        self.next_block = end;
        Ok(Extent { first_block, size })
    }

    /// Stores `bytes` at `offset` of the file in `extent`. Cheapest when offsets ascend.
    pub fn write(&mut self, extent: Extent, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        debug_assert!(offset + bytes.len() as u64 <= extent.size, "write past the end of an extent");
        if bytes.len() >= MIN_HOLE && is_zero(bytes) {
            return Ok(());
        }
        self.write_image(u64::from(extent.first_block) * BLOCK_SIZE + offset, bytes)
    }

    /// The first block that no file was given.
    pub(super) fn next_block(&self) -> u64 {
        self.next_block
    }

    /// Stores `bytes` at `offset` of the image.
    pub(super) fn write_image(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.advance_to(offset)?;
        if self.buffer.len() + bytes.len() > BUFFER_SIZE {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_SIZE {
            self.output.write_at(bytes, offset).map_err(Error::Write)?;
            self.buffer_offset = offset + bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Writes what is buffered without ending the image.
    #[cfg(test)]
    pub(crate) fn flush_for_test(&mut self) {
        self.flush().expect("in memory");
    }

    /// Writes what is buffered, makes the image `len` bytes long and gives up `released` ranges.
    pub(super) fn finish(mut self, len: u64, released: &[Extent]) -> Result<(), Error> {
        self.flush()?;
        self.output.set_len(len).map_err(Error::Write)?;
        for extent in released {
            let offset = u64::from(extent.first_block) * BLOCK_SIZE;
            self.output.discard(offset, extent.size.next_multiple_of(BLOCK_SIZE)).map_err(Error::Write)?;
        }
        Ok(())
    }

    /// Makes `offset` the place where the next buffered byte goes.
    fn advance_to(&mut self, offset: u64) -> Result<(), Error> {
        let at = self.buffer_offset + self.buffer.len() as u64;
        if at == offset {
            return Ok(());
        }
        let gap = offset.checked_sub(at);
        match gap.and_then(|gap| usize::try_from(gap).ok()) {
            Some(gap) if gap as u64 <= MAX_FILLED_GAP && self.buffer.len() + gap <= BUFFER_SIZE => {
                self.buffer.resize(self.buffer.len() + gap, 0);
            }
            _ => {
                self.flush()?;
                self.buffer_offset = offset;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.buffer.is_empty() {
            self.output.write_at(&self.buffer, self.buffer_offset).map_err(Error::Write)?;
            self.buffer_offset += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // A whole cache line at a time, which the compiler turns into vector instructions.
    bytes.chunks(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_start_on_blocks_and_far_apart_writes_leave_zeros_between() {
        let mut image = Vec::new();
        let mut writer = DataWriter::new(&mut image);
        let a = writer.reserve(5).expect("room");
        writer.write(a, 0, b"hello").expect("written");
        let b = writer.reserve(3 << 20).expect("room");
        writer.write(b, (3 << 20) - 3, b"end").expect("written");
        let c = writer.reserve(2 << 20).expect("room");
        writer.write(c, 0, &vec![7; 2 << 20]).expect("written");
        let len = writer.next_block() * BLOCK_SIZE;
        writer.finish(len, &[]).expect("flushed");
        assert_eq!((a.first_block, b.first_block, c.first_block), (1, 2, 2 + 768));
        assert_eq!(&image[4096..4102], b"hello\0");
        let end = (2 + 768) * 4096;
        assert_eq!(&image[end - 4..end + 1], b"\0end\x07");
        assert_eq!(image.len(), end + (2 << 20));
    }

    #[test]
    fn more_than_sixteen_tebibytes_are_refused() {
        let mut image = Vec::new();
        let mut writer = DataWriter::new(&mut image);
        assert!(matches!(writer.reserve(u64::MAX), Err(Error::TooLarge)));
        assert!(writer.reserve(1 << 40).is_ok());
    }
}
