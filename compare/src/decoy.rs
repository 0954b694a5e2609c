//! What the attempts aim at: made for them, of no use to anybody else, gone when this is dropped.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Decoys on the host.
pub struct Decoys {
    marker: String,
    file: tempfile::NamedTempFile,
    process: Child,
    listener: TcpListener,
    _socket: UnixListener,
    /// Where containers' files are.
    disk: PathBuf,
}

impl Decoys {
    /// Makes them. `disk` is where containers' files are: nothing is made there.
    pub fn make(disk: &Path) -> std::io::Result<Self> {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let marker = format!("lighter-decoy-{}-{}", std::process::id(), time.subsec_nanos());
        let mut file = tempfile::Builder::new().prefix("lighter-decoy").tempfile()?;
        file.write_all(marker.as_bytes())?;
        // A shell that waits for the end of its stdin, with the marker among its arguments.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read line", &marker])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&marker)?)?;
        Ok(Self {
            process: command.spawn()?,
            listener: TcpListener::bind("127.0.0.1:0")?,
            _socket: socket,
            disk: disk.to_owned(),
            marker,
            file,
        })
    }

    /// As arguments of the probe.
    pub fn arguments(&self) -> Vec<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let port = self.listener.local_addr().map(|address| address.port()).unwrap_or_default();
        let disk = rustix::fs::statvfs(&self.disk).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
        vec![
            format!("boot={}", boot.trim()),
            format!("marker={}", self.marker),
            format!("file={}", self.file.path().display()),
            format!("port={port}"),
            format!("socket={}", self.marker),
            format!("disk={disk}"),
        ]
    }
}

impl Drop for Decoys {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
