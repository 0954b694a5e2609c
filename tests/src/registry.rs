//! Debian's `docker-registry` on loopback.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::image::run;
use crate::namespace::Namespace;

/// A running registry, ended on drop.
pub struct Registry {
    process: Child,
    /// Where it listens.
    pub address: String,
    /// Before each command that speaks with it.
    prefix: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// A registry on the host's loopback.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_behind(Vec::new())
    }

    /// A registry on the loopback of `namespace`.
    pub fn start_in(namespace: &Namespace) -> anyhow::Result<Self> {
        Self::start_behind(["ip", "netns", "exec", &namespace.name].map(str::to_owned).to_vec())
    }

    fn start_behind(prefix: Vec<String>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        // Free here, so most likely in a namespace, where nobody else is.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let mut file = std::fs::File::create(&config)?;
        writeln!(
            file,
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}",
            directory.path().join("data").display()
        )?;
        writeln!(file, "http: {{addr: {address}}}")?;
        let mut command = behind(&prefix, "docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("cannot start docker-registry")?;
        let registry = Registry { process, address, prefix, _directory: directory };
        let end = Instant::now() + Duration::from_secs(20);
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
        while !behind(&registry.prefix, "bash")
            .args(["-c", &script])
            .stderr(Stdio::null())
            .status()?
            .success()
        {
            ensure!(Instant::now() < end, "docker-registry does not answer on {}", registry.address);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    /// Copies the image `source`, as skopeo calls it, into it; gives its reference.
    pub fn push(&self, source: &str, name: &str) -> anyhow::Result<String> {
        let reference = format!("{}/{name}", self.address);
        run(behind(&self.prefix, "skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source])
            .arg(format!("docker://{reference}")))?;
        Ok(reference)
    }
}

/// The command `program` with `prefix` before it.
fn behind(prefix: &[String], program: &str) -> Command {
    match prefix.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
