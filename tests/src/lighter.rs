//! The `lighter` binary under test, with a data and a run directory of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// A guest that has not ended by then hangs. A boot takes ten seconds where ring 0 is emulated.
pub const GUEST_DEADLINE: Duration = Duration::from_secs(240);

/// One installation of lighter: image store, containers, locks.
pub struct Installation {
    directory: TempDir,
}

impl Installation {
    /// An empty installation, but for the templates that all tests share: a guest is cloned wherever it can be.
    pub fn new() -> anyhow::Result<Self> {
        let installation = Self::without_templates()?;
        std::fs::create_dir(installation.root())?;
        std::os::unix::fs::symlink(shared_templates()?, installation.root().join("templates"))?;
        Ok(installation)
    }

    /// An empty installation that makes its own templates.
    pub fn without_templates() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("lt").tempdir().context("no temporary directory")?;
        Ok(Installation { directory })
    }

    /// The installation that the tests of one program share, so that images are converted once.
    pub fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Installation> = OnceLock::new();
        if let Some(installation) = SHARED.get() {
            return Ok(installation);
        }
        let installation = Installation::new()?;
        Ok(SHARED.get_or_init(|| installation))
    }

    /// Where the data lies.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where locks, sockets and process IDs lie.
    pub fn run_directory(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// `lighter ARGS…`, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary());
        command.env("LIGHTER_ROOT", self.root()).env("LIGHTER_RUN", self.run_directory());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `lighter ARGS…` to its end.
    pub fn output<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> anyhow::Result<Output> {
        finish(self.command(args).spawn().context("cannot start lighter")?, GUEST_DEADLINE)
    }

    /// Runs `lighter ARGS…`, which must succeed, and gives its stdout.
    pub fn stdout<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
        self.stdout_within(args, GUEST_DEADLINE)
    }

    /// Like [`Installation::stdout`], for a guest that has much to do.
    pub fn stdout_within<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        deadline: Duration,
    ) -> anyhow::Result<String> {
        let output = finish(self.command(args).spawn().context("cannot start lighter")?, deadline)?;
        if !output.status.success() {
            bail!("lighter ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8(output.stdout).context("stdout is not UTF-8")
    }

    /// What containers left behind in this installation: files under their directories.
    pub fn leftovers(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for directory in [self.root().join("containers"), self.run_directory().join("containers")] {
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries {
                found.push(entry?.path());
            }
        }
        Ok(found)
    }
}

/// Where the tests' templates are: `LIGHTER_TEST_TEMPLATES`, or a place of this test program's own.
fn shared_templates() -> anyhow::Result<PathBuf> {
    static OWN: OnceLock<TempDir> = OnceLock::new();
    if let Some(path) = std::env::var_os("LIGHTER_TEST_TEMPLATES") {
        return Ok(PathBuf::from(path));
    }
    if OWN.get().is_none() {
        let _ = OWN.set(tempfile::tempdir()?);
    }
    OWN.get().map(|directory| directory.path().to_owned()).context("no place for templates")
}

/// `LIGHTER_BIN`, or the newest `lighter` that cargo built beside the tests.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LIGHTER_BIN") {
        return PathBuf::from(path);
    }
    let tests = std::env::current_exe().unwrap_or_default();
    let target = tests.ancestors().nth(3).unwrap_or(Path::new("target"));
    let modified = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
    ["release/lighter", "debug/lighter"]
        .map(|path| target.join(path))
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(modified)
        .unwrap_or_else(|| target.join("release/lighter"))
}

/// Waits for the end of a process; kills it at the deadline, which is an error.
pub fn finish(mut child: Child, deadline: Duration) -> anyhow::Result<Output> {
    let id = child.id();
    let end = Instant::now() + deadline;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            let said = stderr.map(collect).unwrap_or_default();
            bail!("process {id} did not end within {deadline:?}; stderr: {}", String::from_utf8_lossy(&said));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok(Output {
        status,
        stdout: stdout.map(collect).unwrap_or_default(),
        stderr: stderr.map(collect).unwrap_or_default(),
    })
}

type Reader = std::thread::JoinHandle<Vec<u8>>;

fn drain(mut stream: impl std::io::Read + Send + 'static) -> Reader {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

fn collect(reader: Reader) -> Vec<u8> {
    reader.join().unwrap_or_default()
}
