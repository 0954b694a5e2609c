//! Unix sockets of the host side: what `std` cannot say about them.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::held;
use crate::virtio::guest_buffers::retry;

/// Clients that may wait to be accepted, for example before the guest's driver is ready.
const BACKLOG: libc::c_int = 128;

/// A listening socket that removes its file when dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// None of a socket that was held: its file has no name here.
    inode: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`, readable and writable for this user only. A socket that nobody listens on any
    /// more is replaced; anything else at `path` is left alone and reported as in use.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(held) = held::take(path) {
            return Ok(Self { listener: held?.into(), path: path.to_owned(), inode: None });
        }
        let listener = listen(path)?.into();
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), inode: Some((metadata.dev(), metadata.ino())) })
    }

    /// The next client, as a non-blocking stream; `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Where a guest's connect to `port` goes.
    pub fn port_path(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| Some((metadata.dev(), metadata.ino())) == self.inode);
        if ours {
            // Nobody can be told if this fails; the next `bind` takes the dead socket away.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that listens on `path`, as [`Listener::bind`] says.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    remove_dead_socket(path)?;
    let socket = stream_socket()?;
    // Linux gives the file the mode of the socket's inode, so there is no moment with another mode.
    // SAFETY: plain system call on an open descriptor.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })?;
    let (address, len) = address(path)?;
    // SAFETY: `address` is a valid `sockaddr_un` of which the first `len` bytes are set.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: plain system call on an open descriptor.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Connects without waiting: a listener whose backlog is full refuses with `WouldBlock`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = stream_socket()?;
    let (address, len) = address(path)?;
    // SAFETY: `address` is a valid `sockaddr_un` of which the first `len` bytes are set.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(UnixStream::from(socket))
}

/// Sends what fits now, without SIGPIPE.
pub fn send(stream: &UnixStream, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and the length are those of `data`, which the kernel only reads.
    retry(|| unsafe { libc::send(stream.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) })
}

/// Reads what is there without taking it off the stream.
pub fn peek(stream: &UnixStream, target: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let (base, len) = (target.as_mut_ptr(), target.len());
    // SAFETY: `base` and `len` are those of `target`, which is borrowed mutably until the call returns.
    retry(|| unsafe { libc::recv(stream.as_raw_fd(), base.cast(), len, flags) })
}

fn remove_dead_socket(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(ErrorKind::AddrInUse.into());
    }
    match connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain system call.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeroes is a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // One byte stays for the terminating zero.
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!(
                "socket path must have 1 to {} bytes and has {}",
                address.sun_path.len().saturating_sub(1),
                bytes.len()
            ),
        ));
    }
    for (target, source) in address.sun_path.iter_mut().zip(bytes) {
        *target = *source as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_private_and_goes_away_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&path).unwrap();
    }

    #[test]
    fn a_live_socket_and_a_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let _live = UnixListener::bind(&path).unwrap();
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        let file = dir.path().join("file");
        fs::write(&file, "data").unwrap();
        assert_eq!(Listener::bind(&file).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn drop_spares_the_socket_of_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        let error = Listener::bind(Path::new(&"x".repeat(108))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
