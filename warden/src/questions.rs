//! Questions for names, as the agent takes them in a guest: on 127.0.0.11 in the container's network, passed to the
//! container's keeper, who knows the names of other containers.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use agent::failure::{Context as _, Failure};
use agent::resolver::Connect;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Where the keeper listens: beside the socket `vsock`, as for a machine's vsock device. Its directory may be covered
/// later, so it is held.
pub struct Keeper {
    directory: OwnedFd,
    name: String,
}

impl Keeper {
    /// Called before anything is mounted.
    pub fn of(vsock: &Path) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = vsock.parent().unwrap_or(Path::new("/"));
        let directory = openat(CWD, directory, flags, Mode::empty())
            .during("open the directory of the keeper's sockets")?;
        let name = vsock.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        Ok(Self { directory, name })
    }

    /// Begins connections to its ports.
    pub fn connect(self) -> Connect {
        Box::new(move |port| {
            let path = format!("/proc/self/fd/{}/{}_{port}", self.directory.as_raw_fd(), self.name);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let address = SocketAddrUnix::new(path).map_err(|_| Errno::NAMETOOLONG)?;
            connect(&socket, &address)?;
            Ok(socket)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_keeper_is_found_by_its_port_beside_the_socket() {
        let base = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(base.path().join("v.sock_53")).unwrap();
        let connect = Keeper::of(&base.path().join("v.sock")).unwrap().connect();
        let mut stream: UnixStream = connect(53).unwrap().into();
        stream.write_all(b"x").unwrap();
        assert!(listener.accept().is_ok() && connect(54).is_err());
    }
}
