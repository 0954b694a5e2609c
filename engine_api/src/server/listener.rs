//! Sockets: made here, or handed over by systemd; and who is at the other end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_peercred};
use serde_json::{Value, json};

use super::Listen;

/// Where inherited descriptors begin, sd_listen_fds(3).
const FIRST_INHERITED: RawFd = 3;
/// More than one would hand over.
const MAX_INHERITED: RawFd = 16;

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody serves there.
    #[error("{} is served already, by another `lighter serve`: end that one, or choose another --socket", .0.display())]
    Served(PathBuf),
    /// What is there is no socket.
    #[error("{} is no socket, so it is not replaced: choose another --socket", .0.display())]
    NoSocket(PathBuf),
    /// The group does not exist.
    #[error("there is no group {0:?}: `getent group` lists all")]
    Group(String),
    /// systemd has handed nothing over.
    #[error("no sockets were inherited: LISTEN_FDS and LISTEN_PID say nothing to this process")]
    NothingInherited,
    /// The kernel refuses.
    #[error("cannot {action} {place}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// Where.
        place: String,
        /// What it said.
        source: io::Error,
    },
}

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket; one that was made here is removed at the end.
    Unix {
        /// It.
        socket: UnixListener,
        /// Where it is, and its inode there.
        path: Option<(PathBuf, u64)>,
        /// Who may connect beside root and this user, where the socket's mode lets them.
        group: bool,
    },
    /// TCP, for TLS.
    Tcp(std::net::TcpListener),
}

/// The listeners of `listen`.
pub fn open(listen: &Listen) -> Result<Vec<Listener>, ListenError> {
    match listen {
        Listen::Unix { path, group } => Ok(vec![bind(path, group.as_deref())?]),
        Listen::Inherited => inherited(),
    }
}

fn bind(path: &Path, group: Option<&str>) -> Result<Listener, ListenError> {
    let host = |action| move |source| ListenError::Host { action, place: path.display().to_string(), source };
    let group =
        group.map(|name| group_id(name).ok_or_else(|| ListenError::Group(name.to_owned()))).transpose()?;
    if let Ok(there) = path.symlink_metadata() {
        if !there.file_type().is_socket() {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::Served(path.to_owned()));
        }
    }
    // Made under another name and moved there when its owner and mode are right: it is never open to others, and
    // whoever finds it finds a server.
    let partial = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&partial);
    let socket = UnixListener::bind(&partial).map_err(host("listen at"))?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(mode))
        .map_err(host("set the mode of"))?;
    std::os::unix::fs::chown(&partial, None, group).map_err(host("set the group of"))?;
    let inode = partial.symlink_metadata().map_err(host("look at"))?.ino();
    std::fs::rename(&partial, path).map_err(host("name"))?;
    Ok(Listener::Unix { socket, path: Some((path.to_owned(), inode)), group: group.is_some() })
}

/// The ID of a group, from the files of the system.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn inherited() -> Result<Vec<Listener>, ListenError> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<RawFd>().ok();
    let ours = number("LISTEN_PID").is_some_and(|pid| pid as u32 == std::process::id());
    let count = number("LISTEN_FDS").filter(|count| ours && (1..=MAX_INHERITED).contains(count));
    let count = count.ok_or(ListenError::NothingInherited)?;
    (FIRST_INHERITED..FIRST_INHERITED + count)
        .map(|number| {
            let failed = |source| ListenError::Host {
                action: "take over",
                place: format!("descriptor {number}"),
                source,
            };
            let fd = engine::keeper::spawn::inherited(number).map_err(failed)?;
            let listens = socket_domain(&fd) == Ok(AddressFamily::UNIX) && socket_acceptconn(&fd) == Ok(true);
            if !listens {
                return Err(failed(io::Error::other("it is no listening Unix socket")));
            }
            // Its mode is whatever its maker wanted.
            Ok(Listener::Unix { socket: fd.into(), path: None, group: true })
        })
        .collect()
}

impl Listener {
    /// TCP at `address`.
    pub fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Host { action: "listen at", place: address.to_string(), source };
        Ok(Self::Tcp(std::net::TcpListener::bind(address).map_err(failed)?))
    }

    /// For the log.
    pub fn name(&self) -> String {
        match self {
            Self::Unix { path: Some((path, _)), .. } => format!("unix://{}", path.display()),
            Self::Unix { path: None, .. } => "inherited".to_owned(),
            Self::Tcp(socket) => {
                socket.local_addr().map_or_else(|_| "tcp".to_owned(), |address| format!("tcp://{address}"))
            }
        }
    }

    /// To be waited for; within a runtime.
    pub fn watch(&self) -> io::Result<Watched> {
        match self {
            Self::Unix { socket, group, .. } => {
                let socket = socket.try_clone()?;
                socket.set_nonblocking(true)?;
                Ok(Watched::Unix(tokio::net::UnixListener::from_std(socket)?, *group))
            }
            Self::Tcp(socket) => {
                let socket = socket.try_clone()?;
                socket.set_nonblocking(true)?;
                Ok(Watched::Tcp(tokio::net::TcpListener::from_std(socket)?))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Only if it still is ours: a successor may have replaced it.
        if let Self::Unix { path: Some((path, inode)), .. } = self
            && path.symlink_metadata().is_ok_and(|there| there.ino() == *inode)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A listener within a runtime.
#[derive(Debug)]
pub enum Watched {
    /// And whether its mode decides who may connect.
    Unix(tokio::net::UnixListener, bool),
    /// TCP.
    Tcp(tokio::net::TcpListener),
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Of this host.
    Unix(tokio::net::UnixStream),
    /// Of anywhere; nothing is said before TLS.
    Tcp(tokio::net::TcpStream),
}

/// A connection that was taken.
#[derive(Debug)]
pub struct Accepted {
    /// It.
    pub stream: Stream,
    /// Who it is, for the log.
    pub peer: Value,
    /// Why it is not served, if so.
    pub refused: Option<String>,
}

impl Watched {
    /// The next connection.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(socket, group) => {
                let (stream, _) = socket.accept().await?;
                let peer = socket_peercred(&stream)?;
                let (uid, own) = (peer.uid, rustix::process::geteuid());
                let known = uid.is_root() || uid == own || *group;
                let refused = (!known).then(|| format!("user {} may not connect: see --group", uid.as_raw()));
                let pid = peer.pid.as_raw_nonzero();
                let peer = json!({"uid": uid.as_raw(), "gid": peer.gid.as_raw(), "pid": pid});
                Ok(Accepted { stream: Stream::Unix(stream), peer, refused })
            }
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Accepted { stream: Stream::Tcp(stream), peer: json!({"address": address}), refused: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_and_a_file_are_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = bind(&path, None).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path, None), Err(ListenError::Served(_))));
        drop(first);
        let file = base.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(bind(&file, None), Err(ListenError::NoSocket(_))));
        assert!(matches!(bind(&path, Some("no-such-group")), Err(ListenError::Group(_))));
    }
}
