//! `ssh localhost`, the way to a program on another machine that everybody knows: the peer of `lighter exec`.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::{deps, step};

/// What the server may take to listen.
const START: Duration = Duration::from_secs(10);

/// A server with keys of its own on a free port of the loopback, ended on drop.
pub struct Ssh {
    server: Child,
    port: u16,
    key: PathBuf,
}

impl Ssh {
    /// Starts it, with all its files below `directory`.
    pub fn start(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir(directory)?;
        let path = |name: &str| directory.join(name);
        for name in ["host", "key"] {
            let mut command = Command::new("ssh-keygen");
            step::run_quietly(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(name)))?;
        }
        std::fs::rename(path("key.pub"), path("authorized"))?;
        // Where it confines itself; Debian's unit makes it otherwise.
        std::fs::create_dir_all("/run/sshd").context("cannot make /run/sshd")?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
             PermitRootLogin yes\nUsePAM no\nPidFile none\n",
            path("host").display(),
            path("authorized").display()
        );
        std::fs::write(path("config"), config)?;
        let program = deps::find_program("sshd").context("there is no sshd")?;
        let mut command = Command::new(program);
        command.args(["-D", "-q", "-f"]).arg(path("config")).stdin(Stdio::null()).stderr(Stdio::null());
        let server = Self { server: command.spawn().context("cannot start sshd")?, port, key: path("key") };
        let end = Instant::now() + START;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            ensure!(Instant::now() < end, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// `ssh localhost SCRIPT`
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args([
            "-q",
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        command.args(["-o", "BatchMode=yes", "-p", &self.port.to_string(), "-i"]).arg(&self.key);
        command.args(["127.0.0.1", script]);
        command
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
