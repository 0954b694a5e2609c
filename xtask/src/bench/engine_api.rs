//! The engine's API: how long a list of many containers takes. They are records on the disk, and none runs.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::stats::Samples;

/// Containers in the list.
const CONTAINERS: usize = 1000;
/// Lists in a round.
const LISTS: usize = 20;

/// A server with many containers.
pub struct Engine {
    server: Child,
    socket: PathBuf,
}

impl Engine {
    /// Makes them below `scratch`.
    pub fn start(lighter: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let (data, run) = (scratch.join("engine"), scratch.join("r"));
        let image = scratch.join("image");
        std::fs::create_dir_all(image.join("bin"))?;
        let command = |args: &[&str]| {
            let mut command = Command::new(lighter);
            command.env("LIGHTER_ROOT", &data).env("LIGHTER_RUN", &run).args(args).stdin(Stdio::null());
            command
        };
        let reference = format!("dir:{}", image.display());
        let output = command(&["create", "--cold", "--network", "none", &reference, "/bin/true"]).output()?;
        ensure!(output.status.success(), "no container: {}", String::from_utf8_lossy(&output.stderr));
        let id = String::from_utf8(output.stdout)?.trim().to_owned();
        let containers = data.join("containers");
        let spec = std::fs::read_to_string(containers.join(&id).join("spec.json"))?;
        for number in 1..CONTAINERS {
            let copy = format!("{number:012x}");
            let directory = containers.join(&copy);
            std::fs::create_dir(&directory)?;
            std::fs::write(directory.join("spec.json"), spec.replace(&id, &copy))?;
            std::fs::write(directory.join("name"), format!("container-{number}"))?;
            std::fs::copy(containers.join(&id).join("state.json"), directory.join("state.json"))?;
        }
        let socket = scratch.join("engine.sock");
        let mut serve = command(&["serve", "--socket"]);
        let server = serve.arg(&socket).stderr(Stdio::null()).spawn().context("cannot start the server")?;
        let engine = Self { server, socket };
        let end = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&engine.socket).is_err() {
            ensure!(Instant::now() < end, "the server does not come up");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(engine)
    }

    /// Milliseconds of a list, the median of some.
    pub fn list(&self) -> anyhow::Result<f64> {
        let mut samples = Samples::default();
        for _ in 0..LISTS {
            let begin = Instant::now();
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.write_all(
                b"GET /v1/containers?limit=1000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            samples.push(begin.elapsed().as_secs_f64() * 1e3);
            let count = answer.matches("\"id\":").count();
            ensure!(count == CONTAINERS, "{count} containers instead of {CONTAINERS}");
        }
        samples.median().context("no samples")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
