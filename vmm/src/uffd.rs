//! Guest memory whose pages another process gives when they are touched (userfaultfd, `ioctl_userfaultfd(2)`).
//!
//! ```text
//! VMM ── mappings as JSON, the userfaultfd (SCM_RIGHTS) ─► handler on a Unix socket
//! guest touches a page ─► kernel ─► handler ─► UFFDIO_COPY ─► the guest goes on
//! ```
//!
//! The message is Firecracker's. The descriptor stays open here too: if the handler ends, the guest waits for ever and
//! does not see pages of zeroes.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use devices::GuestRam;
use rustix::mm::UserfaultfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::snapshot::PAGE;

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFD_FEATURE_EVENT_REMOVE`: the handler hears what the balloon gives back.
const EVENT_REMOVE: u64 = 8;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;
/// `UFFDIO_API`, `_IOWR(0xAA, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `UFFDIO_REGISTER`, `_IOWR(0xAA, 0, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `USERFAULTFD_IOC_NEW`, `_IO(0xAA, 0)`, of `/dev/userfaultfd`.
const IOC_NEW: libc::c_ulong = 0xaa00;

/// Guest memory cannot be left to a handler.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// The kernel gives no descriptor.
    #[error("cannot open a userfaultfd: it takes CAP_SYS_PTRACE or access to /dev/userfaultfd")]
    Open(#[source] io::Error),
    /// The kernel does not know what is needed.
    #[error("cannot {0} the userfaultfd")]
    Ioctl(&'static str, #[source] io::Error),
    /// The handler is not there.
    #[error("cannot hand guest memory to {}", path.display())]
    Handler {
        /// Its socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What must stay open while the VM lives.
#[derive(Debug)]
pub struct Handler {
    _uffd: OwnedFd,
    _socket: UnixStream,
}

/// One region as the handler is told of it.
#[derive(Serialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: usize,
    /// In the file of memory.
    offset: u64,
    page_size: usize,
    /// In bytes all the same: the name is Firecracker's mistake, kept for old handlers.
    page_size_kib: usize,
}

/// Leaves `memory` of pages of `page` bytes, which nobody has touched, to the process that listens on `path`.
pub fn hand_over(memory: &GuestRam, path: &Path, page: usize) -> Result<Handler, UffdError> {
    let uffd = open().map_err(UffdError::Open)?;
    // struct uffdio_api: api, features, ioctls.
    ioctl(&uffd, UFFDIO_API, &mut [API, EVENT_REMOVE, 0])
        .map_err(|error| UffdError::Ioctl("set up", error))?;
    let mut mappings = Vec::new();
    let mut offset = 0;
    for region in memory.iter() {
        let (address, size) = (region.as_ptr() as u64, region.len());
        // struct uffdio_register: start, len, mode, ioctls.
        ioctl(&uffd, UFFDIO_REGISTER, &mut [address, size, MISSING, 0])
            .map_err(|error| UffdError::Ioctl("register guest memory with", error))?;
        let (base_host_virt_addr, size_bytes) = (address, size as usize);
        mappings.push(Mapping {
            base_host_virt_addr,
            size: size_bytes,
            offset,
            page_size: page,
            page_size_kib: page,
        });
        offset += size;
    }
    let message = serde_json::to_vec(&mappings).expect("invariant: mappings are plain data");
    let socket =
        send(path, &message, &uffd).map_err(|source| UffdError::Handler { path: path.to_owned(), source })?;
    Ok(Handler { _uffd: uffd, _socket: socket })
}

/// Touches every page of `memory`: what its handler has not given yet is in no page that a snapshot would find.
pub fn fetch_all(memory: &GuestRam) {
    for region in memory.iter() {
        for page in (0..region.len()).step_by(PAGE) {
            // Inside the region, so it cannot fail.
            let _ = memory.read_obj::<u8>(GuestAddress(region.start_addr().0 + page));
        }
    }
}

/// A userfaultfd that handles the faults of KVM, which are the kernel's, too.
fn open() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a new descriptor that changes nothing until memory is registered with it.
    let refused = match unsafe { rustix::mm::userfaultfd(flags) } {
        Ok(uffd) => return Ok(uffd),
        Err(error) => error.into(),
    };
    let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") else {
        return Err(refused);
    };
    // SAFETY: USERFAULTFD_IOC_NEW takes its flags by value and gives a new descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn ioctl<const N: usize>(uffd: &OwnedFd, request: libc::c_ulong, argument: &mut [u64; N]) -> io::Result<()> {
    // SAFETY: both requests read and write a structure of exactly these 64-bit fields; ranges that they name are
    // mappings that outlive the descriptor, which the VM's owner drops after the VM.
    match unsafe { libc::ioctl(uffd.as_raw_fd(), request, argument.as_mut_ptr()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send(path: &Path, message: &[u8], uffd: &OwnedFd) -> io::Result<UnixStream> {
    let socket = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [uffd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(&socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    if sent != message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(socket)
}
