//! The raw file or host block device behind a disk: executes requests, one after the other.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::mapped::MappedDisk;
use super::request::{ByteRange, Request, SERIAL_BYTES};
use crate::virtio::guest_buffers::{GuestBuffers, IoVecs};

/// Written again and again where the host cannot zero a range by itself.
static ZEROES: [u8; 4096] = [0; 4096];

/// The file, and how its serial number reads.
pub struct Backend {
    pub file: File,
    /// For what was read before.
    pub mapped: Option<MappedDisk>,
    pub serial: [u8; SERIAL_BYTES],
}

/// Where the data of a request is.
pub struct Data<'b, 'm> {
    /// What the device reads.
    pub readable: &'b GuestBuffers<'m>,
    /// Where the data starts in it, after the header.
    pub start: usize,
    /// What the device writes.
    pub writable: &'b GuestBuffers<'m>,
}

impl Backend {
    /// Does what `request` says and returns the number of bytes written to the guest.
    ///
    /// With `durable` a change is on the medium when this returns; otherwise it is so after a flush.
    pub fn execute(&mut self, request: &Request, data: &Data<'_, '_>, durable: bool) -> io::Result<usize> {
        match request {
            Request::Read(range) => return self.read(*range, data.writable),
            Request::GetId => {
                data.writable.copy_from(0, &self.serial);
                return Ok(self.serial.len());
            }
            Request::Flush => return self.file.sync_data().map(|()| 0),
            Request::Write(range) => self.write(*range, data)?,
            Request::Discard(ranges) => ranges.iter().try_for_each(|&range| self.discard(range))?,
            Request::WriteZeroes { range, unmap } => self.write_zeroes(*range, *unmap)?,
        }
        if durable {
            self.file.sync_data()?;
        }
        Ok(0)
    }

    fn read(&mut self, range: ByteRange, target: &GuestBuffers<'_>) -> io::Result<usize> {
        if let Some(read) = self.read_mapped(range, target) {
            return Ok(read);
        }
        let result = transfer(range, |done, len, offset| {
            let mut io = IoVecs::new();
            io.push_guest(target, done, len);
            io.read_at(self.file.as_fd(), offset)
        });
        // A read that fails half way has filled guest pages too.
        target.mark_dirty(0, target.len());
        result?;
        usize::try_from(range.len).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    /// Reads `range` if that does not wait for the medium. Says whether it did.
    pub fn read_cached(&mut self, range: ByteRange, target: &GuestBuffers<'_>) -> bool {
        if self.read_mapped(range, target).is_some() {
            return true;
        }
        let Ok(len) = usize::try_from(range.len) else {
            return false;
        };
        let mut io = IoVecs::new();
        io.push_guest(target, 0, len);
        let result = io.read_cached_at(self.file.as_fd(), range.offset);
        if let Ok(count) = result {
            target.mark_dirty(0, count);
        }
        result.is_ok_and(|count| count == len)
    }

    /// Reads out of the mapping, if all of `range` was read before. What faults there is left to the file,
    /// which says why.
    fn read_mapped(&mut self, range: ByteRange, target: &GuestBuffers<'_>) -> Option<usize> {
        let mapped = self.mapped.as_mut()?;
        if !mapped.was_read(range) {
            mapped.note_read(range);
            return None;
        }
        let result = mapped.read(range, target);
        target.mark_dirty(0, target.len());
        result.ok()?;
        usize::try_from(range.len).ok()
    }

    fn write(&self, range: ByteRange, data: &Data<'_, '_>) -> io::Result<()> {
        transfer(range, |done, len, offset| {
            let mut io = IoVecs::new();
            io.push_guest(data.readable, data.start.saturating_add(done), len);
            io.write_at(self.file.as_fd(), offset)
        })
    }

    /// A hint: where the host cannot free space the contents stay.
    fn discard(&self, range: ByteRange) -> io::Result<()> {
        match self.fallocate(range, FallocateFlags::PUNCH_HOLE) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        let mode = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match self.fallocate(range, mode) {
            Err(Errno::OPNOTSUPP) => transfer(range, |_, len, offset| {
                let tail = ZEROES.get(..len).unwrap_or(&ZEROES);
                let pages = [IoSlice::new(&ZEROES); 16];
                match pages.get(..len.checked_div(ZEROES.len()).unwrap_or(0)).unwrap_or(&pages) {
                    [] => self.file.write_at(tail, offset),
                    pages => Ok(rustix::io::pwritev(&self.file, pages, offset)?),
                }
            }),
            result => Ok(result?),
        }
    }

    fn fallocate(&self, range: ByteRange, mode: FallocateFlags) -> Result<(), Errno> {
        if range.len == 0 {
            return Ok(());
        }
        let mode = mode | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, mode, range.offset, range.len))
    }
}

/// Calls `step` with the bytes done, the bytes left and the position in the file, until all of `range` is
/// done. The end of the file before that is an error: somebody cut the disk off.
fn transfer(
    range: ByteRange,
    mut step: impl FnMut(usize, usize, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let len = usize::try_from(range.len).map_err(|_| invalid())?;
    let mut done = 0usize;
    while let Some(left) = len.checked_sub(done).filter(|&left| left > 0) {
        let position = u64::try_from(done).ok().and_then(|done| range.offset.checked_add(done));
        match step(done, left, position.ok_or_else(invalid)?) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
