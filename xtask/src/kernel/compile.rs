//! Compiles the configured tree, the same way on every machine.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::progress::Progress;
use crate::step;

/// What a build would otherwise take from the machine, its clock and its user.
const FIXED: [(&str, &str); 6] = [
    ("KBUILD_BUILD_USER", "lighter"),
    ("KBUILD_BUILD_HOST", "lighter"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 2026"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
];
/// How much of the log an error shows.
const LOG_TAIL_LINES: usize = 25;

/// `make` in the tree, in a clean environment: no compiler flags, no job server of an outer cargo.
pub fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.env_clear().envs(FIXED);
    for inherited in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(inherited) {
            command.env(inherited, value);
        }
    }
    // Without this, a tree inside somebody's git repository gets a `+` in its version.
    command.arg("LOCALVERSION=").current_dir(tree).stdin(Stdio::null());
    command
}

/// Compiles `vmlinux`, with progress; all of the output goes to `log`.
pub fn vmlinux(tree: &Path, log: &Path) -> anyhow::Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = make(tree)
        .args([&format!("-j{jobs}"), "vmlinux"])
        .stdout(Stdio::piped())
        .stderr(file.try_clone()?)
        .spawn()
        .context("cannot run make")?;
    let output = child.stdout.take().context("make has no output")?;
    let mut progress = Progress::start(format!("compiling the guest kernel, {jobs} jobs"));
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line?;
        line.push(b'\n');
        file.write_all(&line)?;
        progress.line(&line);
    }
    let status = child.wait()?;
    progress.finish(status.success());
    if !status.success() {
        bail!("the kernel does not compile; the end of {}:\n{}", log.display(), tail(log)?);
    }
    Ok(())
}

/// Writes `vmlinux` without symbols and compiler notes. What boots stays: segments and the PVH note.
pub fn strip(vmlinux: &Path, stripped: &Path) -> anyhow::Result<()> {
    let mut objcopy = Command::new("objcopy");
    objcopy.args(["--strip-all", "--remove-section=.comment"]).arg(vmlinux).arg(stripped);
    step::run_quietly(&mut objcopy).map(drop)
}

fn tail(log: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn make_sees_nothing_of_the_outer_build() {
        let command = make(Path::new("/"));
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        assert!(names.iter().any(|name| name == "KBUILD_BUILD_TIMESTAMP"));
        assert!(!names.iter().any(|name| name == "MAKEFLAGS" || name == "CARGO_MAKEFLAGS"));
    }

    #[test]
    fn an_error_shows_the_end_of_the_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        std::fs::write(log.path(), text).unwrap();
        let tail = tail(log.path()).unwrap();
        assert!(tail.starts_with("line 75\n") && tail.ends_with("line 99"), "{tail}");
    }
}
