//! Maps of sparse files: GNU's old format (in the header), PAX 0.0 and 0.1 (in records) and 1.0 (before the data).

use super::limits::MAX_SPARSE_SEGMENTS;
use super::number::{decimal, header_number};
use super::stream::Stream;
use super::tar::{BLOCK, TarError, read_block};

/// A run of bytes that is stored; between two of them the file is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where in the file it belongs.
    pub(super) offset: u64,
    /// How many bytes.
    pub(super) len: u64,
}

/// Checks that `segments` ascend, stay inside `size` and store exactly `stored` bytes.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut total = 0;
    for segment in segments {
        if segment.offset < end {
            return Err(TarError::Sparse);
        }
        end = segment.offset.checked_add(segment.len).ok_or(TarError::Sparse)?;
        total += segment.len;
    }
    if end > size || total != stored {
        return Err(TarError::Sparse);
    }
    Ok(())
}

/// The old GNU format: four segments in the header, 21 more in each block that follows it.
/// Returns the file's real size and its segments.
pub(super) fn read_gnu(
    header: &tar::GnuHeader,
    stream: &mut Stream,
) -> Result<(u64, Vec<Segment>), TarError> {
    let real_size = number(&header.realsize)?;
    let mut segments = Vec::new();
    let mut more = push_gnu(&mut segments, &header.sparse)? && header.is_extended();
    while more {
        let block = read_block(stream)?.ok_or(TarError::Truncated)?;
        let mut extension = tar::GnuExtSparseHeader::new();
        extension.as_mut_bytes().copy_from_slice(&block);
        more = push_gnu(&mut segments, extension.sparse())? && extension.is_extended();
    }
    Ok((real_size, segments))
}

/// Appends the used records; false once an unused one ends the list.
fn push_gnu(segments: &mut Vec<Segment>, records: &[tar::GnuSparseHeader]) -> Result<bool, TarError> {
    for record in records {
        if record.is_empty() {
            return Ok(false);
        }
        if segments.len() >= MAX_SPARSE_SEGMENTS {
            return Err(TarError::Sparse);
        }
        segments.push(Segment { offset: number(&record.offset)?, len: number(&record.numbytes)? });
    }
    Ok(true)
}

fn number(field: &[u8]) -> Result<u64, TarError> {
    header_number(field).and_then(|number| u64::try_from(number).ok()).ok_or(TarError::Sparse)
}

/// PAX format 1.0: decimal lines in front of the data, padded to a block. `stored` counts both and is reduced to the
/// data's part.
pub(super) fn read_pax_1_0(stream: &mut Stream, stored: &mut u64) -> Result<Vec<Segment>, TarError> {
    let mut lines = Lines { block: [0; BLOCK], position: BLOCK, stored };
    let count = usize::try_from(lines.next(stream)?).ok().filter(|count| *count <= MAX_SPARSE_SEGMENTS);
    let count = count.ok_or(TarError::Sparse)?;
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(Segment { offset: lines.next(stream)?, len: lines.next(stream)? });
    }
    Ok(segments)
}

/// Reads decimal lines block by block.
struct Lines<'a> {
    block: [u8; BLOCK],
    position: usize,
    stored: &'a mut u64,
}

impl Lines<'_> {
    fn next(&mut self, stream: &mut Stream) -> Result<u64, TarError> {
        let mut line = Vec::new();
        loop {
            if self.position == BLOCK {
                *self.stored = self.stored.checked_sub(BLOCK as u64).ok_or(TarError::Sparse)?;
                self.block = read_block(stream)?.ok_or(TarError::Truncated)?;
                self.position = 0;
            }
            let byte = self.block[self.position];
            self.position += 1;
            match byte {
                b'\n' => return decimal(&line).ok_or(TarError::Sparse),
                // Twenty digits are more than any 64-bit number has.
                _ if line.len() >= 20 => return Err(TarError::Sparse),
                _ => line.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_ascend_fit_and_account_for_every_stored_byte() {
        let map = |pairs: &[(u64, u64)]| -> Vec<Segment> {
            pairs.iter().map(|&(offset, len)| Segment { offset, len }).collect()
        };
        assert!(check(&map(&[(0, 4), (10, 2), (20, 0)]), 20, 6).is_ok());
        for (pairs, size, stored) in [
            (&[(4, 4), (0, 2)][..], 20, 6),
            (&[(0, 4), (3, 2)], 20, 6),
            (&[(0, 4)], 3, 4),
            (&[(0, 4)], 20, 5),
            (&[(u64::MAX, 4)], 20, 4),
        ] {
            assert!(matches!(check(&map(pairs), size, stored), Err(TarError::Sparse)), "{pairs:?}");
        }
    }
}
