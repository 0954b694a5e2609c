//! A template on the disk, and VMM processes that are clones of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bench::monotonic;

/// Port on which the guest executes a program for each connection.
const EXEC_PORT: u32 = 1024;
/// What that program says.
const HELLO: &str = "hello\n";
/// Nothing takes longer, even in a crowd.
const PATIENCE: Duration = Duration::from_secs(120);

/// A snapshot with the configuration of its clones.
pub struct Template {
    vmm: PathBuf,
    config: serde_json::Value,
}

/// Moments of a start, CLOCK_MONOTONIC in seconds.
pub struct Started {
    pub spawned: f64,
    pub main: f64,
}

impl Template {
    /// What `vmm/benches/clone.rs` left in `directory`, for the VMM program `vmm`.
    pub fn open(vmm: &Path, directory: &Path) -> anyhow::Result<Self> {
        let config = serde_json::from_slice(&std::fs::read(directory.join("config.json"))?)?;
        Ok(Template { vmm: vmm.to_owned(), config })
    }

    /// Starts a clone, with its sockets in `directory`.
    pub fn spawn(&self, directory: &Path, control: bool) -> anyhow::Result<Clone> {
        let _ = std::fs::remove_dir_all(directory);
        std::fs::create_dir(directory)?;
        let mut config = self.config.clone();
        config["vsock"]["uds_path"] = directory.join("v.sock").to_str().into();
        if control {
            config["control"] = directory.join("control.sock").to_str().into();
        }
        let mut file = tempfile::tempfile()?;
        serde_json::to_writer(&mut file, &config)?;
        file.rewind()?;
        let config = inheritable(file.into())?;
        let (events, events_child) = rustix::pipe::pipe()?;
        rustix::io::fcntl_setfd(&events, rustix::io::FdFlags::CLOEXEC)?;
        let mut command = Command::new(&self.vmm);
        command.args(["vmm", "--config-fd", &config.as_raw_fd().to_string()]);
        command.args(["--event-fd", &events_child.as_raw_fd().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let spawned = monotonic();
        let child = command.spawn().context("cannot start the VMM")?;
        let events = BufReader::new(File::from(events));
        Ok(Clone { child, events, spawned, directory: directory.to_owned() })
    }
}

fn inheritable(fd: OwnedFd) -> anyhow::Result<OwnedFd> {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    Ok(fd)
}

/// A VMM process, killed on drop.
pub struct Clone {
    child: Child,
    events: BufReader<File>,
    spawned: f64,
    directory: PathBuf,
}

impl Clone {
    /// Waits until its guest runs.
    pub fn started(&mut self) -> anyhow::Result<Started> {
        let mut line = String::new();
        self.events.read_line(&mut line)?;
        let event: serde_json::Value =
            serde_json::from_str(&line).with_context(|| format!("event {line:?}"))?;
        let main = event["process_start_ns"].as_f64().with_context(|| format!("the VMM said {line}"))?;
        Ok(Started { spawned: self.spawned, main: main / 1e9 })
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Executes a program in the guest and waits for its output.
    pub fn exec(&self) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(self.directory.join("v.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("CONNECT {EXEC_PORT}\n").as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).context("the guest does not accept")?;
        ensure!(line.starts_with("OK"), "the guest does not listen: {line:?}");
        let mut said = String::new();
        reader.read_to_string(&mut said).context("the guest does not answer")?;
        ensure!(said == HELLO, "the guest said {said:?}");
        Ok(())
    }

    /// Sends a request that takes no argument to the control socket.
    pub fn control(&self, request: &str) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(self.directory.join("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{{\"request\":\"{request}\"}}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        ensure!(line.starts_with("{\"ok\""), "{request}: {line}");
        Ok(())
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
