//! The verbs of a working day beside what does the same without lighter: `ps`, `exec`, streams, logs, `cp`.
//!
//! Streams and logs come from a container without a VM: the programs at their ends then run as fast as the host's, and
//! what is measured is lighter, whose part of the way (keeper, log, client) is the same for a VM.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::report::{Report, Row};
use super::ssh::Ssh;
use super::stats::Samples;
use crate::{build, deps, kernel, step};

/// Containers that `ps` lists.
const LISTED: usize = 100;
/// Processes that the guest starts by itself for one figure.
const FORKS: u32 = 10;
/// Bytes of a stream.
const STREAM: u64 = 512 << 20;
/// Bytes of a copied file.
const COPIED: u64 = 1 << 30;

/// An installation of its own.
struct Place {
    lighter: PathBuf,
    kernel: PathBuf,
    scratch: tempfile::TempDir,
}

/// Runs all of it, each figure in turn with its peer.
pub fn run(runs: usize) -> anyhow::Result<Report> {
    deps::ensure(deps::KERNEL)?;
    deps::ensure(deps::DEMO)?;
    deps::ensure(deps::BENCH_ENGINE)?;
    let kernel = kernel::ensure()?;
    let place = Place { lighter: build::lighter()?, kernel, scratch: tempfile::tempdir()? };
    place.make_image()?;
    let rows = step::step("measuring", || {
        place.start("box", "vm")?;
        place.start("near", "container")?;
        let ssh = Ssh::start(&place.path("ssh"))?;
        let mut rows = vec![place.exec(runs)?];
        rows.extend(place.streams(runs, &ssh)?);
        rows.extend([place.log(runs, &ssh)?, place.copy(runs)?, place.list(runs)?]);
        Ok(rows)
    });
    // The machine must not outlive the benchmark, whatever happened.
    let _ = place.command(["rm", "-f", "box", "near"]).output();
    Ok(Report {
        title: "engine",
        peer: "without lighter".into(),
        notes: vec![
            format!("ps: {LISTED} containers, beside `find` over their directories"),
            "exec: `lighter exec box true`, beside one fork and exec of the guest's own shell".into(),
            format!("streams: {} MiB of zeros by `lighter exec` and `ssh localhost`", STREAM >> 20),
            "log: the same by `lighter run -d` into its log, beside `ssh localhost` into a file".into(),
            format!("cp: {} MiB out of the container, beside `cp` and `sync` of the host", COPIED >> 20),
        ],
        rows: rows?,
    })
}

impl Place {
    fn command<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = Command::new(&self.lighter);
        command.env("LIGHTER_ROOT", self.path("root")).env("LIGHTER_RUN", self.path("run"));
        command.env("LIGHTER_KERNEL", &self.kernel);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn image(&self) -> String {
        format!("dir:{}", self.path("image").display())
    }

    fn make_image(&self) -> anyhow::Result<()> {
        let root = self.path("image");
        std::fs::create_dir_all(root.join("bin"))?;
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for name in ["sh", "true", "cat", "sleep", "dd"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
        }
        Ok(())
    }

    fn start(&self, name: &str, isolation: &str) -> anyhow::Result<()> {
        let image = self.image();
        let first = ["run", "-d", "--name", name, "--isolation", isolation, "--network", "none"];
        timed(self.command(first).args([&image, "sleep", "100000"])).map(drop)
    }

    fn exec(&self, runs: usize) -> anyhow::Result<Row> {
        let (mut lighter, mut guest) = (Samples::default(), Samples::default());
        let script = format!("i=0; while [ $i -lt {FORKS} ]; do /bin/busybox true; i=$((i+1)); done");
        for round in 0..=runs {
            let exec = timed(&mut self.command(["exec", "box", "true"]))?;
            let forks = timed(&mut self.command(["exec", "box", "sh", "-c", &script]))?;
            if round > 0 {
                lighter.push(exec);
                guest.push((forks - exec).max(0.0) / f64::from(FORKS));
            }
        }
        Ok(Row { what: "`lighter exec` of `true`", unit: "ms", lighter, peer: guest })
    }

    /// Out of a program and into one.
    fn streams(&self, runs: usize, ssh: &Ssh) -> anyhow::Result<[Row; 2]> {
        let (out, into) = (zeros(), "cat > /dev/null");
        let source = self.path("zeros");
        std::fs::File::create(&source)?.set_len(STREAM)?;
        let zeros = || std::fs::File::open(&source);
        let [mut out_of, mut out_ssh, mut in_of, mut in_ssh] = [const { Vec::new() }; 4];
        for round in 0..=runs {
            let figures = [
                timed(self.command(["exec", "near", "sh", "-c", &out]).stdout(Stdio::null()))?,
                timed(ssh.command(&out).stdin(Stdio::null()))?,
                timed(self.command(["exec", "-i", "near", "sh", "-c", into]).stdin(zeros()?))?,
                timed(ssh.command(into).stdin(zeros()?))?,
            ];
            if round > 0 {
                for (samples, figure) in
                    [&mut out_of, &mut out_ssh, &mut in_of, &mut in_ssh].into_iter().zip(figures)
                {
                    samples.push(figure);
                }
            }
        }
        let row = |what, lighter: Vec<f64>, peer: Vec<f64>| Row {
            what,
            unit: "ms",
            lighter: lighter.into_iter().collect(),
            peer: peer.into_iter().collect(),
        };
        Ok([row("512 MiB of output", out_of, out_ssh), row("512 MiB of input", in_of, in_ssh)])
    }

    fn log(&self, runs: usize, ssh: &Ssh) -> anyhow::Result<Row> {
        let (mut lighter, mut peer) = (Samples::default(), Samples::default());
        let (image, zeros, file) = (self.image(), zeros(), self.path("logged"));
        for round in 0..=runs {
            let first = ["run", "-d", "--name", "loud", "--isolation", "container", "--network", "none"];
            let start = timed(self.command(first).args([&image, "sh", "-c", &zeros]))?;
            let waited = timed(&mut self.command(["wait", "loud"]))?;
            timed(&mut self.command(["rm", "loud"]))?;
            let begin = Instant::now();
            let status =
                ssh.command(&zeros).stdin(Stdio::null()).stdout(std::fs::File::create(&file)?).status()?;
            ensure!(status.success() && file.metadata()?.len() == STREAM, "ssh did not hand on all");
            if round > 0 {
                lighter.push(start + waited);
                peer.push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(Row { what: "512 MiB into the log", unit: "ms", lighter, peer })
    }

    fn copy(&self, runs: usize) -> anyhow::Result<Row> {
        let (mut lighter, mut host) = (Samples::default(), Samples::default());
        let (source, first, second) = (self.path("source"), self.path("first"), self.path("second"));
        // Noise, so that nothing on the way takes it for a hole.
        let mut noise = std::fs::File::open("/dev/urandom")?.take(COPIED);
        std::io::copy(&mut noise, &mut std::fs::File::create(&source)?)?;
        timed(&mut self.command(["cp", &source.display().to_string(), "box:/big"]))?;
        for round in 0..=runs {
            let out = first.display().to_string();
            let copied = timed(&mut self.command(["cp", "box:/big", &out]))?;
            ensure!(first.metadata()?.len() == COPIED, "not all was copied");
            let plain = timed(Command::new("cp").arg("--reflink=never").arg(&first).arg(&second))?;
            if round > 0 {
                lighter.push(copied);
                host.push(plain);
            }
            remove(&first)?;
            remove(&second)?;
        }
        Ok(Row { what: "`lighter cp` of 1 GiB", unit: "ms", lighter, peer: host })
    }

    fn list(&self, runs: usize) -> anyhow::Result<Row> {
        let image = self.image();
        for number in 1..LISTED {
            let name = format!("listed-{number}");
            let args = ["create", "--name", &name, "--cold", "--network", "none", &image, "true"];
            timed(&mut self.command(args))?;
        }
        let (mut lighter, mut find) = (Samples::default(), Samples::default());
        for round in 0..=runs * 4 {
            let list = timed(&mut self.command(["ps", "-a"]))?;
            let found = timed(Command::new("find").arg(self.path("root/containers")).stdout(Stdio::null()))?;
            if round > 0 {
                lighter.push(list);
                find.push(found);
            }
        }
        Ok(Row { what: "`lighter ps -a` of 100 containers", unit: "ms", lighter, peer: find })
    }
}

/// What writes a stream.
fn zeros() -> String {
    format!("dd if=/dev/zero bs=64k count={} 2> /dev/null", STREAM >> 16)
}

/// Milliseconds that `command` takes, which must succeed.
fn timed(command: &mut Command) -> anyhow::Result<f64> {
    let start = Instant::now();
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let output = child.with_context(|| format!("cannot start {command:?}"))?.wait_with_output()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

fn remove(path: &Path) -> anyhow::Result<()> {
    std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}
