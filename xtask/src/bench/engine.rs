//! The verbs of a working day beside what does the same without a VM: `ps`, `exec`, output, `cp`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::report::{Report, Row};
use super::stats::Samples;
use crate::{build, deps, kernel, step};

/// Containers that `ps` lists.
const LISTED: usize = 100;
/// Processes that the guest starts by itself for one figure.
const FORKS: u32 = 10;
/// Bytes of output.
const OUTPUT: usize = 8 << 20;
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
    let kernel = kernel::ensure()?;
    let place = Place { lighter: build::lighter()?, kernel, scratch: tempfile::tempdir()? };
    place.make_image()?;
    let rows = step::step("measuring", || {
        place.start("box")?;
        let rows = vec![place.exec(runs)?, place.output(runs)?, place.copy(runs)?, place.list(runs)?];
        Ok(rows)
    });
    // The machine must not outlive the benchmark, whatever happened.
    let _ = place.command(["rm", "-f", "box"]).output();
    Ok(Report {
        title: "engine",
        peer: "without lighter".into(),
        notes: vec![
            format!("ps: {LISTED} containers, beside `find` over their directories"),
            "exec: `lighter exec box true`, beside one fork and exec of the guest's own shell".into(),
            format!(
                "output: {} MiB of `cat` in the guest, beside `cat` through a pipe of the host",
                OUTPUT >> 20
            ),
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
        let mut file = std::fs::File::create(root.join("output"))?;
        Ok(file.write_all(&vec![b'x'; OUTPUT])?)
    }

    fn start(&self, name: &str) -> anyhow::Result<()> {
        let image = self.image();
        let args = ["run", "-d", "--name", name, "--network", "none", &image, "sleep", "100000"];
        timed(&mut self.command(args)).map(drop)
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

    fn output(&self, runs: usize) -> anyhow::Result<Row> {
        let (mut lighter, mut host) = (Samples::default(), Samples::default());
        let file = self.path("image/output");
        for round in 0..=runs {
            let exec = timed(self.command(["exec", "box", "cat", "/output"]).stdout(Stdio::null()))?;
            let pipe =
                timed(Command::new("sh").arg("-c").arg(format!("cat {} | cat > /dev/null", file.display())))?;
            if round > 0 {
                lighter.push(exec);
                host.push(pipe);
            }
        }
        Ok(Row { what: "8 MiB of output", unit: "ms", lighter, peer: host })
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
