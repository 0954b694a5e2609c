//! `cargo xtask demo`: a container image in its own microVM, from nothing, with what each phase took.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use crate::{build, deps, kernel, step};

/// Builds all, makes a busybox image and runs it.
pub fn run() -> anyhow::Result<()> {
    let start = Instant::now();
    deps::ensure(deps::KERNEL)?;
    deps::ensure(deps::DEMO)?;
    let kernel = kernel::ensure()?;
    let lighter = build::lighter()?;
    let image = tempfile::tempdir().context("cannot make a directory for the image")?;
    step::step("making an image of Debian's busybox-static", || make_image(image.path()))?;

    let host = step::run_quietly(Command::new("uname").arg("-sr"))?;
    eprintln!("\n    host kernel:  {}", host.trim());
    let script =
        "echo \"    guest kernel: $(uname -sr)\"; echo '    hello from a microVM; its processes:'; ps";
    for what in ["an image's first start boots, and makes a template", "every later start clones it"] {
        eprintln!("\n{what}:\n    $ lighter run --rm --trace dir:IMAGE sh -c '…'\n");
        let status = Command::new(&lighter)
            .args(["run", "--rm", "--network", "none", "--trace"])
            .arg(format!("dir:{}", image.path().display()))
            .args(["sh", "-c", script])
            .env("LIGHTER_KERNEL", &kernel)
            .status()
            .with_context(|| format!("cannot run {}", lighter.display()))?;
        anyhow::ensure!(
            status.success(),
            "the microVM ended with {status}; `{} doctor` checks this host",
            lighter.display()
        );
    }
    eprintln!("\ndemo done in {:.1} s", start.elapsed().as_secs_f64());
    eprintln!("try it yourself:\n    {} run --rm -i docker.io/library/alpine sh", lighter.display());
    Ok(())
}

/// A root directory with busybox under every name that it answers to.
fn make_image(root: &Path) -> anyhow::Result<()> {
    let bin = root.join("bin");
    std::fs::create_dir(&bin)?;
    for directory in ["etc", "tmp", "proc", "sys", "dev", "root"] {
        std::fs::create_dir(root.join(directory))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::copy("/bin/busybox", bin.join("busybox")).context("cannot copy /bin/busybox")?;
    let names = step::run_quietly(Command::new("/bin/busybox").arg("--list"))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    same_times(root)
}

/// Gives everything below `path` one time: the same tree is the same image, whose template is there the next time.
fn same_times(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            same_times(&entry?.path())?;
        }
    }
    let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}
