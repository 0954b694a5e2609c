//! The TAP interface behind the device.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::header::HEADER_SIZE;
use crate::virtio::guest_buffers::{GuestBuffers, IoVecs};

const TUN_DEVICE: &str = "/dev/net/tun";

/// Using a TAP interface failed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name does not fit into an interface name.
    #[error("interface name {0:?} must have 1 to 15 bytes")]
    Name(String),
    /// The device file could not be opened.
    #[error("cannot open {TUN_DEVICE}")]
    OpenDevice(#[source] io::Error),
    /// The interface could not be made or attached to.
    #[error("cannot attach to TAP interface {name:?}")]
    Attach {
        /// Name of the interface.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor cannot be used as a TAP.
    #[error("cannot set {what} of the TAP descriptor")]
    Configure {
        /// Which setting.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Where frames come from and go to, never waiting. A TAP has one frame behind its header (`header.rs`) per `read` and
/// `write`.
pub trait FrameIo: Send {
    /// The descriptor, for polling.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Says which work the host may leave to the guest, as TUN_F_* flags.
    fn set_offloads(&self, flags: libc::c_uint) -> io::Result<()>;

    /// Whether it understands the header: checksums to be completed, segments to be cut.
    fn has_offloads(&self) -> bool {
        true
    }

    /// Whether frames wait that the descriptor does not tell of.
    fn has_frames(&self) -> bool {
        false
    }

    /// Puts one frame behind its header into `vecs` and returns their length. What does not fit is lost.
    fn receive(&mut self, vecs: &mut IoVecs<'_>) -> io::Result<usize> {
        vecs.read_from(self.fd())
    }

    /// Sends one frame behind its header; [`io::ErrorKind::WouldBlock`] if it takes none now.
    fn send(&mut self, frame: &GuestBuffers<'_>) -> io::Result<()> {
        let mut vecs = IoVecs::new();
        vecs.push_guest(frame, 0, frame.len());
        vecs.write_to(self.fd()).map(drop)
    }

    /// Sends what is left of an earlier frame; true if something is left still, which the descriptor will take when it
    /// is writable.
    fn flush(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// An open TAP interface with the header that the device needs.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Attaches to the TAP interface `name`, which is made if it does not exist. One that was made here goes
    /// away with its last descriptor. Making one needs CAP_NET_ADMIN in this network namespace.
    pub fn open(name: &str) -> Result<OwnedFd, TapError> {
        attach(name, 0)
    }

    /// Makes the TAP interface `name`; one that exists is an error.
    pub fn create(name: &str) -> Result<OwnedFd, TapError> {
        attach(name, libc::IFF_TUN_EXCL)
    }

    /// Makes a descriptor of [`Tap::open`] ready for the device: header of 12 bytes, no offloads,
    /// non-blocking.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let tap = Self { fd };
        tap.set_offloads(0).map_err(|source| TapError::Configure { what: "offloads", source })?;
        let size = HEADER_SIZE as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int, which `size` is.
        check(unsafe { libc::ioctl(tap.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })
            .map_err(|source| TapError::Configure { what: "header size", source })?;
        set_nonblocking(tap.fd.as_fd())
            .map_err(|source| TapError::Configure { what: "O_NONBLOCK", source })?;
        Ok(tap)
    }
}

impl FrameIo for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn set_offloads(&self, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }
}

fn attach(name: &str, extra_flags: libc::c_int) -> Result<OwnedFd, TapError> {
    let mut request = interface_request(name)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(TapError::OpenDevice)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | extra_flags;
    // The kernel reads the field as unsigned; the top bit is IFF_TUN_EXCL.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) })
        .map_err(|source| TapError::Attach { name: name.to_owned(), source })?;
    Ok(device.into())
}

fn interface_request(name: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays for the terminating zero.
    let fits = !name.is_empty() && name.len() < request.ifr_name.len() && !name.contains('\0');
    if !fits {
        return Err(TapError::Name(name.to_owned()));
    }
    for (target, source) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = source as libc::c_char;
    }
    Ok(request)
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain system call on an open descriptor.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: plain system call on an open descriptor.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit_no_interface_are_refused() {
        for name in ["", "sixteen-bytes-xx", "nul\0"] {
            assert!(matches!(Tap::create(name), Err(TapError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Tap::from_fd(file.into()), Err(TapError::Configure { what: "offloads", .. })));
    }
}
