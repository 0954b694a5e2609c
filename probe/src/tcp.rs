//! Connections by TCP from a port that was taken before.
//!
//! A kernel that has to find a port draws 256 KiB of random numbers when it does so first, which takes ten seconds
//! where a guest's kernel is emulated and is no part of what is measured.

use std::io::{Error, Result};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// Connects within `patience`.
pub fn connect(to: SocketAddrV4, patience: Duration) -> Result<TcpStream> {
    // SAFETY: socket takes integers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let seconds = libc::timeval { tv_sec: patience.as_secs() as libc::time_t, tv_usec: 0 };
    let (any, to) = (address(SocketAddrV4::new([0, 0, 0, 0].into(), 0)), address(to));
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: each pointer is to a live structure of the length that is passed.
    unsafe {
        // For connect(2) too, socket(7).
        check(libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            (&raw const seconds).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        ))?;
        check(libc::bind(socket.as_raw_fd(), (&raw const any).cast(), length))?;
        check(libc::connect(socket.as_raw_fd(), (&raw const to).cast(), length))?;
    }
    Ok(socket.into())
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn address(of: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: of.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*of.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    #[test]
    fn what_listens_is_reached_and_what_does_not_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let Ok(SocketAddr::V4(at)) = listener.local_addr() else { panic!("another family") };
        assert_eq!(connect(at, Duration::from_secs(1)).unwrap().peer_addr().unwrap(), SocketAddr::V4(at));
        drop(listener);
        assert!(connect(at, Duration::from_secs(1)).is_err());
    }
}
