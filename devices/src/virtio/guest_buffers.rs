//! The buffers of one descriptor chain, read and written in place by system calls.
//!
//! Guest memory never becomes a Rust reference: a buffer is a [`VolatileSlice`], and the kernel gets its
//! address in an `iovec`. The guest may change a buffer at any time, so whoever decides on a value reads it
//! once into memory of its own.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use smallvec::SmallVec;
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, VolatileSlice};

use super::chain::Chain;
use crate::GuestRam;

/// A contiguous piece of guest memory as a device sees it.
pub type GuestSlice<'m> = VolatileSlice<'m, BS<'m, Option<AtomicBitmap>>>;

type Region = GuestRegionMmap<Option<AtomicBitmap>>;

/// Descriptors in one chain. Stops a chain from making the VMM collect without bound; `readv` takes 1024
/// (IOV_MAX), two of which are left for buffers of the VMM itself.
pub const MAX_CHAIN_DESCRIPTORS: usize = 1022;

/// Buffers that most chains have at most: so many are kept without an allocation.
const FEW: usize = 4;

/// Which way the data of a chain goes (virtio 1.2, section 2.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver wrote it, the device reads it.
    Readable,
    /// The device writes it.
    Writable,
}

/// The driver made a descriptor chain that the device cannot use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// A next index, an indirect table or a length is wrong, or the chain is a loop.
    #[error("broken descriptor chain")]
    Broken,
    /// More than [`MAX_CHAIN_DESCRIPTORS`].
    #[error("more than {MAX_CHAIN_DESCRIPTORS} descriptors in a chain")]
    TooManyDescriptors,
    /// A descriptor has the other direction than its queue.
    #[error("descriptor is not {0:?}")]
    WrongDirection(Direction),
    /// A descriptor that the device reads follows one that it writes.
    #[error("readable descriptor after a writable one")]
    ReadableAfterWritable,
    /// A buffer is not in guest memory.
    #[error("buffer of {len} bytes at {addr:#x} is outside guest memory")]
    OutsideMemory {
        /// Guest physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// The buffers of one chain as one sequence of bytes.
#[derive(Debug)]
pub struct GuestBuffers<'m> {
    slices: SmallVec<[GuestSlice<'m>; FEW]>,
    len: usize,
}

impl<'m> GuestBuffers<'m> {
    /// Collects the buffers of `chain`, all of which have to go in `direction`.
    pub fn collect(mem: &'m GuestRam, chain: Chain<'_>, direction: Direction) -> Result<Self, ChainError> {
        let mut buffers = Self::empty();
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count >= MAX_CHAIN_DESCRIPTORS {
                return Err(ChainError::TooManyDescriptors);
            }
            if descriptor.is_write_only() != (direction == Direction::Writable) {
                return Err(ChainError::WrongDirection(direction));
            }
            complete = !descriptor.has_next();
            buffers.push(mem, descriptor)?;
        }
        // The iterator ends silently at a bad index; then the last descriptor it gave says there is more.
        if complete { Ok(buffers) } else { Err(ChainError::Broken) }
    }

    /// Collects the buffers of a chain in which the device reads the first ones and writes the others.
    pub fn collect_both(mem: &'m GuestRam, chain: Chain<'_>) -> Result<(Self, Self), ChainError> {
        let (mut readable, mut writable) = (Self::empty(), Self::empty());
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count >= MAX_CHAIN_DESCRIPTORS {
                return Err(ChainError::TooManyDescriptors);
            }
            complete = !descriptor.has_next();
            if descriptor.is_write_only() {
                writable.push(mem, descriptor)?;
            } else if writable.slices.is_empty() {
                readable.push(mem, descriptor)?;
            } else {
                return Err(ChainError::ReadableAfterWritable);
            }
        }
        // As in `collect`.
        if complete { Ok((readable, writable)) } else { Err(ChainError::Broken) }
    }

    /// No buffers.
    pub fn empty() -> Self {
        Self { slices: SmallVec::new(), len: 0 }
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of contiguous pieces, each one `iovec`.
    pub fn piece_count(&self) -> usize {
        self.slices.len()
    }

    /// Copies from `offset` into `target`; false if the buffers end before `target` is full.
    pub fn copy_to(&self, offset: usize, target: &mut [u8]) -> bool {
        let mut rest = target;
        for piece in self.pieces(offset, rest.len()) {
            let (head, tail) = rest.split_at_mut(piece.len());
            if piece.read_slice(head, 0).is_err() {
                return false;
            }
            rest = tail;
        }
        rest.is_empty()
    }

    /// Copies `source` to `offset`; false if the buffers end before all of it is written.
    pub fn copy_from(&self, offset: usize, source: &[u8]) -> bool {
        let mut rest = source;
        for piece in self.pieces(offset, rest.len()) {
            let (head, tail) = rest.split_at(piece.len());
            if piece.write_slice(head, 0).is_err() {
                return false;
            }
            rest = tail;
        }
        rest.is_empty()
    }

    /// Notes that the kernel wrote `len` bytes at `offset`.
    pub fn mark_dirty(&self, offset: usize, len: usize) {
        for piece in self.pieces(offset, len) {
            piece.bitmap().mark_dirty(0, piece.len());
        }
    }

    /// The guest address of the byte at `offset`, if there is one.
    pub fn address_of(&self, mem: &GuestRam, offset: usize) -> Option<GuestAddress> {
        let piece = self.pieces(offset, 1).next()?;
        locate(mem, piece.ptr_guard().as_ptr().addr())
            .map(|(region, at)| GuestAddress(region.start_addr().0.saturating_add(at as u64)))
    }

    /// The pieces that make up at most `len` bytes from `offset` on.
    pub(super) fn pieces(&self, offset: usize, len: usize) -> impl Iterator<Item = GuestSlice<'m>> + '_ {
        let mut skip = offset;
        let mut left = len;
        self.slices.iter().filter_map(move |slice| {
            let start = skip.min(slice.len());
            skip = skip.saturating_sub(start);
            let count = slice.len().saturating_sub(start).min(left);
            left = left.saturating_sub(count);
            if count == 0 {
                return None;
            }
            slice.subslice(start, count).ok()
        })
    }

    fn push(&mut self, mem: &'m GuestRam, descriptor: Descriptor) -> Result<(), ChainError> {
        let outside = || ChainError::OutsideMemory { addr: descriptor.addr().0, len: descriptor.len() };
        let len = usize::try_from(descriptor.len()).map_err(|_| outside())?;
        if len == 0 {
            return Ok(());
        }
        // Nearly every buffer lies in one region.
        if let Ok(slice) = GuestMemoryBackend::get_slice(mem, descriptor.addr(), len) {
            self.len = self.len.checked_add(len).ok_or(ChainError::Broken)?;
            self.slices.push(slice);
            return Ok(());
        }
        for slice in GuestMemoryBackend::get_slices(mem, descriptor.addr(), len) {
            let slice = slice.map_err(|_| outside())?;
            self.len = self.len.checked_add(slice.len()).ok_or(ChainError::Broken)?;
            self.slices.push(slice);
        }
        Ok(())
    }
}

/// Buffers of the guest and of the VMM for one system call, in order.
#[derive(Debug, Default)]
pub struct IoVecs<'a> {
    raw: SmallVec<[libc::iovec; FEW]>,
    len: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> IoVecs<'a> {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a buffer of the VMM.
    pub fn push_host(&mut self, buffer: &'a mut [u8]) {
        self.push(buffer.as_mut_ptr(), buffer.len());
    }

    /// Appends at most `len` bytes of the guest's `buffers`, from `offset` on.
    pub fn push_guest<'m: 'a>(&mut self, buffers: &GuestBuffers<'m>, offset: usize, len: usize) {
        for piece in buffers.pieces(offset, len) {
            self.push(piece.ptr_guard_mut().as_ptr(), piece.len());
        }
    }

    /// One `readv`, repeated when a signal interrupts it. The caller marks guest pages dirty.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = self.raw_count()?;
        if let [only] = *self.raw {
            // SAFETY: as below.
            return retry(|| unsafe { libc::read(fd.as_raw_fd(), only.iov_base, only.iov_len) });
        }
        retry(|| {
            // SAFETY: `raw` holds `count` entries. Each describes memory that is valid for writes during
            // 'a: a `&'a mut [u8]` from `push_host`, or guest memory that stays mapped for 'm: 'a, which no
            // Rust reference aliases, from `push_guest`. `fd` is open for the length of the borrow.
            unsafe { libc::readv(fd.as_raw_fd(), self.raw.as_ptr(), count) }
        })
    }

    /// One `preadv` at `offset`, repeated when a signal interrupts it. The caller marks guest pages dirty.
    pub fn read_at(&mut self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let (count, offset) = (self.raw_count()?, file_offset(offset)?);
        retry(|| {
            // SAFETY: as in `read_from`.
            unsafe { libc::preadv(fd.as_raw_fd(), self.raw.as_ptr(), count, offset) }
        })
    }

    /// One `preadv2` at `offset` that does not wait for the medium: what is not in the page cache gives
    /// [`io::ErrorKind::WouldBlock`] or fewer bytes. The caller marks guest pages dirty.
    pub fn read_cached_at(&mut self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let (count, offset) = (self.raw_count()?, file_offset(offset)?);
        retry(|| {
            // SAFETY: as in `read_from`.
            unsafe { libc::preadv2(fd.as_raw_fd(), self.raw.as_ptr(), count, offset, libc::RWF_NOWAIT) }
        })
    }

    /// One `pwritev` at `offset`, repeated when a signal interrupts it.
    pub fn write_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let (count, offset) = (self.raw_count()?, file_offset(offset)?);
        retry(|| {
            // SAFETY: as in `read_from`; the kernel only reads the memory.
            unsafe { libc::pwritev(fd.as_raw_fd(), self.raw.as_ptr(), count, offset) }
        })
    }

    /// One `writev`, repeated when a signal interrupts it.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = self.raw_count()?;
        if let [only] = *self.raw {
            // SAFETY: as in `read_from`; the kernel only reads the memory.
            return retry(|| unsafe { libc::write(fd.as_raw_fd(), only.iov_base, only.iov_len) });
        }
        retry(|| {
            // SAFETY: as in `read_from`; the kernel only reads the memory.
            unsafe { libc::writev(fd.as_raw_fd(), self.raw.as_ptr(), count) }
        })
    }

    /// One `sendmsg` on a socket, without SIGPIPE and without waiting.
    pub fn send_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all zeroes is a valid `msghdr`: null pointers with length 0.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.raw.as_mut_ptr();
        message.msg_iovlen = self.raw.len();
        retry(|| {
            // SAFETY: `message` points to `raw.len()` entries that are valid as said in `read_from`; the
            // kernel only reads them. Name and control data are absent.
            unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
        })
    }

    /// The same without its lifetime, for a request that outlives the call which collected it.
    ///
    /// # Safety
    ///
    /// The guest memory and the buffers of the VMM in it stay mapped as long as the result is used.
    pub unsafe fn detach(self) -> IoVecs<'static> {
        IoVecs { raw: self.raw, len: self.len, borrowed: PhantomData }
    }

    /// For a system call: the array and the number of its entries.
    pub fn as_raw(&self) -> (*const libc::iovec, u32) {
        (self.raw.as_ptr(), u32::try_from(self.raw.len()).unwrap_or(u32::MAX))
    }

    /// All but the first `count` bytes.
    pub fn after(&mut self, count: usize) -> IoVecs<'_> {
        let mut left = count;
        let mut rest = IoVecs::new();
        for vec in &self.raw {
            let skip = left.min(vec.iov_len);
            left = left.saturating_sub(skip);
            let len = vec.iov_len.saturating_sub(skip);
            if len > 0 {
                rest.push(vec.iov_base.cast::<u8>().wrapping_add(skip), len);
            }
        }
        rest
    }

    /// Notes that the kernel wrote what of this is memory of the guest.
    pub fn mark_dirty(&self, mem: &GuestRam) {
        for vec in &self.raw {
            if let Some((region, offset)) = locate(mem, vec.iov_base.addr()) {
                region.bitmap().mark_dirty(offset, vec.iov_len);
            }
        }
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        self.raw.push(libc::iovec { iov_base: base.cast(), iov_len: len });
        self.len = self.len.saturating_add(len);
    }

    fn raw_count(&self) -> io::Result<libc::c_int> {
        libc::c_int::try_from(self.raw.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

/// The region of guest memory that is mapped at `host`, and the offset in it.
fn locate(mem: &GuestRam, host: usize) -> Option<(&Region, usize)> {
    mem.iter().find_map(|region| {
        let offset = host.checked_sub(region.as_ptr().addr())?;
        (offset < region.size()).then_some((region, offset))
    })
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Repeats a system call until no signal interrupts it.
pub(crate) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let result = call();
        if let Ok(count) = usize::try_from(result) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
