//! The agent's sockets: AF_VSOCK, stream.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use agent_protocol::HOST_PORT;
use rustix::io::Errno;

use crate::failure::{Context, Failure, check, last_errno};

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 16;

/// Listens for connections that the host opens to `port`.
pub fn listen(port: u32) -> Result<OwnedFd, Failure> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is a whole sockaddr_vm on the stack, and its length is given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length()) })
        .during("bind the vsock port of the agent")?;
    // SAFETY: listen takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) }).during("listen on vsock")?;
    Ok(socket)
}

/// Opens the first session, to the host; non-blocking once it is connected.
pub fn connect_to_host() -> Result<OwnedFd, Failure> {
    let socket = socket(0)?;
    let address = address(libc::VMADDR_CID_HOST, HOST_PORT);
    // SAFETY: the address is a whole sockaddr_vm on the stack, and its length is given.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length()) }).during(
        "connect to the host over vsock (this kernel needs CONFIG_VIRTIO_VSOCKETS built in, see docs/kernel.md)",
    )?;
    rustix::io::ioctl_fionbio(&socket, true).during("make the session non-blocking")?;
    Ok(socket)
}

/// Begins to connect to a port of the host; the result is seen by writing. Never waits.
pub fn connect_later(port: u32) -> Result<OwnedFd, Errno> {
    let socket = socket(libc::SOCK_NONBLOCK).map_err(|_| last_errno())?;
    let address = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address is a whole sockaddr_vm on the stack, and its length is given.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length()) }) {
        Ok(_) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// Takes the next session that the host opened; `None` if there is none.
pub fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: accept4 allows null for an address that nobody wants.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    match check(fd) {
        // SAFETY: the descriptor is new and nobody else owns it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn socket(flags: libc::c_int) -> Result<OwnedFd, Failure> {
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    if fd < 0 {
        let message = format!(
            "this kernel has no virtio-vsock ({}): it needs CONFIG_VSOCKETS and CONFIG_VIRTIO_VSOCKETS built in, see docs/kernel.md",
            last_errno()
        );
        return Err(Failure::agent(message));
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const fn length() -> libc::socklen_t {
    size_of::<libc::sockaddr_vm>() as libc::socklen_t
}
