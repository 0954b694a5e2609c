//! Images made on the spot.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::guest_program;

/// Root directory of an image with busybox under all its names and the guest programs of `tests/guest`
/// under `/guest`; made once a test program.
pub fn busybox() -> anyhow::Result<&'static Path> {
    static IMAGE: OnceLock<TempDir> = OnceLock::new();
    if let Some(image) = IMAGE.get() {
        return Ok(image.path());
    }
    let image = tempfile::tempdir()?;
    make_busybox(image.path())?;
    Ok(IMAGE.get_or_init(|| image).path())
}

/// `dir:` reference of [`busybox`].
pub fn busybox_reference() -> anyhow::Result<String> {
    Ok(format!("dir:{}", busybox()?.display()))
}

/// Makes the tree of [`busybox`] in `root`.
pub fn make_busybox(root: &Path) -> anyhow::Result<()> {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "home/user", "guest"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755))?;
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:User:/home/user:/bin/sh\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nstaff:x:50:user\n")?;
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("Debian's busybox-static is missing")?;
    for name in run(Command::new("/bin/busybox").arg("--list"))?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name))?;
    }
    for program in guest_program::all()? {
        let name = program.file_name().context("a program without a name")?;
        std::fs::copy(&program, root.join("guest").join(name))?;
    }
    same_times(root)
}

/// Gives everything below `path` one time, so that the same tree is the same image in every test and one template
/// serves them all.
fn same_times(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            same_times(&entry?.path())?;
        }
    }
    let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("cannot set the times of {}", path.display()))
}

/// An OCI layout made of the busybox tree by `umoci`, with a configuration; its reference.
///
/// `config` are options of `umoci config`, for example `--config.user user`.
pub fn oci_layout(directory: &Path, config: &[&str]) -> anyhow::Result<PathBuf> {
    let layout = directory.join("layout");
    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci").args(["insert", "--image", &tagged]).arg(busybox()?).arg("/"))?;
    if !config.is_empty() {
        run(Command::new("umoci").args(["config", "--image", &tagged]).args(config))?;
    }
    Ok(layout)
}

/// Runs a tool, which must succeed, and gives its stdout.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
