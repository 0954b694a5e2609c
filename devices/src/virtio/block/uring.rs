//! Requests that the kernel works on while the device goes on: one io_uring a disk.
//!
//! ```text
//! start ─► slot + entry ─► submit (one system call a batch) ─► kernel ─► reap ─► status, used ring
//! ```
//!
//! Filters do not see what a ring does, so it is restricted before it works: reads, writes and flushes of its one file,
//! nothing else. Whoever has taken over the process can make it do no more (Linux 5.10).
//!
//! The kernel reads and writes guest memory while a request is in flight, so the owner keeps that memory
//! mapped until the ring is drained, which waits until nothing is in flight; dropping it does that too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, register::Restriction, types};
use vm_memory::GuestAddress;

use super::config_space::QUEUE_SIZE;
use super::request::{ByteRange, Request};
use crate::virtio::guest_buffers::IoVecs;

/// The only file, as registered with the ring.
const DISK: types::Fixed = types::Fixed(0);

/// A request that the kernel works on.
pub struct InFlight {
    /// Chain to complete.
    pub head: u16,
    /// What was asked for.
    pub request: Request,
    /// Where its status goes.
    pub status_at: GuestAddress,
    /// The guest's buffers without header and status.
    pub data: IoVecs<'static>,
    /// Whether a write has to be on the medium when it completes.
    pub durable: bool,
}

// SAFETY: the addresses in `data` are those of guest memory, which belongs to the process and not to a thread.
unsafe impl Send for InFlight {}

/// The ring with its requests.
pub struct Uring {
    ring: IoUring,
    file: File,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Entries that the kernel has not taken yet.
    unsubmitted: usize,
}

impl Uring {
    /// A ring for requests on `file`, and on nothing else.
    pub fn open(file: &File) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(QUEUE_SIZE.into())?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        let slots = usize::from(QUEUE_SIZE);
        Ok(Self {
            ring,
            file: file.try_clone()?,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).collect(),
            unsubmitted: 0,
        })
    }

    /// Readable while there are requests to reap.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Whether as many requests are in flight as a driver that keeps the rules can have.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether [`Uring::reap`] would give something.
    pub fn has_done(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Takes a read, write or flush; the kernel sees it after [`Uring::submit`]. Gives it back where there
    /// is no room.
    ///
    /// # Safety
    ///
    /// The memory behind `request.data` stays mapped until this ring is drained or dropped.
    pub unsafe fn start(&mut self, request: InFlight) -> Result<(), Request> {
        let Some(slot) = self.free.pop() else {
            return Err(request.request);
        };
        let Some(place) = self.slots.get_mut(slot) else {
            return Err(request.request);
        };
        // The entry points into the slot, which stays where it is until the request is done.
        let request = place.insert(request);
        let entry = entry(request).user_data(slot as u64);
        // SAFETY: the buffers stay valid by the caller's promise; the array that describes them, in the slot,
        // until the request is reaped or this is dropped, which waits for it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are as many entries as slots, and the kernel takes all of them at each submission.
        if pushed.is_err() {
            self.free.push(slot);
            return place.take().map_or(Ok(()), |request| Err(request.request));
        }
        self.unsubmitted = self.unsubmitted.saturating_add(1);
        Ok(())
    }

    /// Shows the kernel what was started. What it does not take now it gets at the next call.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.unsubmitted == 0 {
            return Ok(());
        }
        let taken = retry(|| self.ring.submit())?;
        self.unsubmitted = self.unsubmitted.saturating_sub(taken);
        Ok(())
    }

    /// The next request that is done, with its outcome.
    pub fn reap(&mut self) -> Option<(InFlight, io::Result<()>)> {
        loop {
            let done = self.ring.completion().next()?;
            let slot = usize::try_from(done.user_data()).ok()?;
            // Every entry has a slot of its own; another number could only come from the kernel.
            let Some(mut request) = self.slots.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let result = finish(&self.file, &mut request, done.result());
            return Some((request, result));
        }
    }

    /// Waits until nothing is in flight and forgets what came of it.
    pub fn drain(&mut self) {
        while !self.is_idle() {
            self.wait().expect("invariant: a ring with requests in flight can be waited for");
            while self.reap().is_some() {}
        }
    }

    /// Waits until a request is done, if one is in flight.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.is_idle() || self.has_done() {
            return Ok(());
        }
        let taken = retry(|| self.ring.submit_and_wait(1))?;
        self.unsubmitted = self.unsubmitted.saturating_sub(taken);
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.drain();
    }
}

/// The kernel's form of `request`.
fn entry(request: &InFlight) -> Entry {
    let (vecs, count) = request.data.as_raw();
    match request.request {
        Request::Read(range) => opcode::Readv::new(DISK, vecs, count).offset(range.offset).build(),
        Request::Write(range) => {
            let flags = if request.durable { libc::RWF_DSYNC } else { 0 };
            opcode::Writev::new(DISK, vecs, count).offset(range.offset).rw_flags(flags).build()
        }
        _ => opcode::Fsync::new(DISK).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

/// What came of a request whose entry ended with `result`. What the kernel left undone is done here.
fn finish(file: &File, request: &mut InFlight, result: i32) -> io::Result<()> {
    let done = match usize::try_from(result) {
        Ok(done) => done,
        Err(_) => match result.saturating_neg() {
            libc::EINTR | libc::EAGAIN => 0,
            error => return Err(io::Error::from_raw_os_error(error)),
        },
    };
    let (ByteRange { offset, len }, writes) = match request.request {
        Request::Read(range) => (range, false),
        Request::Write(range) => (range, true),
        _ if result < 0 => return file.sync_data(),
        _ => return Ok(()),
    };
    let mut done = u64::try_from(done).unwrap_or(u64::MAX);
    while done < len {
        // All of `data` stays as it is: whoever marks its pages dirty needs those that are done too.
        let mut rest = request.data.after(usize::try_from(done).unwrap_or(usize::MAX));
        let at = offset.saturating_add(done);
        let moved = if writes {
            rest.write_at(file.as_fd(), at)
        } else if result == 0 {
            // The end of the file: somebody cut the disk off.
            Ok(0)
        } else {
            rest.read_at(file.as_fd(), at)
        }?;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done = done.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
        if writes && request.durable && done >= len {
            file.sync_data()?;
        }
    }
    Ok(())
}

/// Repeats a call that a signal interrupted or that the kernel asks to repeat.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_but_its_disks_work() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(512).unwrap();
        let mut uring = Uring::open(&disk).unwrap();
        let mut byte = [0_u8];
        let at = types::Fd(disk.as_raw_fd());
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/hostname".as_ptr());
        let refused = [
            open.build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Nop::new().build(),
            // A read of a file that is not the ring's.
            opcode::Read::new(at, byte.as_mut_ptr(), 1).build(),
            opcode::Fsync::new(at).build(),
        ];
        for entry in refused {
            // SAFETY: what the entry points to lives until its end, which is waited for.
            unsafe { uring.ring.submission().push(&entry).unwrap() };
            uring.ring.submit_and_wait(1).unwrap();
            assert_eq!(uring.ring.completion().next().unwrap().result(), -libc::EACCES);
        }
        let more = uring.ring.submitter().register_files_update(0, &[disk.as_raw_fd()]);
        assert_eq!(more.unwrap_err().raw_os_error(), Some(libc::EACCES));
        let entry = opcode::Fsync::new(DISK).build();
        // SAFETY: the entry points to nothing.
        unsafe { uring.ring.submission().push(&entry).unwrap() };
        uring.ring.submit_and_wait(1).unwrap();
        assert_eq!(uring.ring.completion().next().unwrap().result(), 0);
    }
}
